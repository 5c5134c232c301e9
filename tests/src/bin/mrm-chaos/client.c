/* A client in C; says what the one in Rust does. Arguments: SOCKET MODELS SEED COUNT. */
#include <mrm.h>

#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define HELD_MAX 1

static uint64_t state;

static uint64_t below(uint64_t bound) {
    uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (z ^ (z >> 31)) % bound;
}

/* The bytes that were compared, or 0. */
static size_t is_file(mrm_model_h model, const char *dir, unsigned at) {
    char path[4096];
    mrm_segment_t segment;
    snprintf(path, sizeof path, "%s/m%03u.safetensors", dir, at);
    FILE *file = fopen(path, "rb");
    if (!file || mrm_model_segment_at(model, 0, &segment)) return 0;
    char *bytes = malloc(segment.bytes + 1);
    size_t read = fread(bytes, 1, segment.bytes + 1, file);
    int same = read == segment.bytes && memcmp(bytes, segment.data_ptr, read) == 0;
    free(bytes);
    fclose(file);
    return same ? read : 0;
}

/* Says `word BYTES` if the model is its file. */
static void compare(const char *word, mrm_model_h model, const char *dir, unsigned at) {
    size_t right = is_file(model, dir, at);
    if (right && word) printf("%s %zu\n", word, right);
    if (!right) puts("V a model is not its file (C)");
}

int main(int argc, char **argv) {
    if (argc != 5) return 2;
    const char *dir = argv[2];
    state = strtoull(argv[3], NULL, 10);
    unsigned count = (unsigned)strtoul(argv[4], NULL, 10);
    mrm_client_h client = NULL;
    mrm_model_h held[HELD_MAX] = {0};
    unsigned which[HELD_MAX] = {0};
    int rests = 0;
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (;;) {
        struct pollfd input = {.fd = 0, .events = POLLIN};
        if (poll(&input, 1, rests ? -1 : 3) > 0) {
            char line[64];
            if (read(0, line, sizeof line) <= 0) return 0;
            for (int i = 0; i < HELD_MAX; i++) {
                if (!held[i]) continue;
                compare("c", held[i], dir, which[i]);
                mrm_model_close(held[i]);
                held[i] = NULL;
            }
            rests = 1;
            puts("holding 0 0");
            continue;
        }
        if (!client && mrm_client_connect(argv[1], &client)) {
            puts("r connect");
            continue;
        }
        int slot = (int)below(HELD_MAX);
        if (held[slot]) {
            compare(NULL, held[slot], dir, which[slot]);
            mrm_model_close(held[slot]);
            held[slot] = NULL;
            continue;
        }
        char name[16];
        unsigned at = (unsigned)below(1 + below(1 + below(count)));
        mrm_open_options_t options = MRM_OPEN_OPTIONS_INIT;
        options.wait_ms = 3000;
        snprintf(name, sizeof name, "m%03u", at);
        int failed = mrm_client_open(client, name, &options, &held[slot]);
        if (failed) {
            held[slot] = NULL;
            printf("r %d\n", failed);
            continue;
        }
        which[slot] = at;
        compare("o", held[slot], dir, at);
    }
}
