/*
 * Opens a model and lists its tensors: name, element type, shape, bytes, and the sum of the first
 * bytes, read in place. With a device: where on it they are.
 *
 *     cc open_model.c $(pkg-config --cflags --libs mrm) -o open_model
 *     ./open_model sentence/minilm          a registered model
 *     ./open_model ./model.safetensors      a file of one's own: anything with . or / in front
 *     ./open_model sentence/minilm cuda:0   in the memory of a device; `best`: of any, or the host's
 */
#include <inttypes.h>
#include <mrm.h>
#include <stdio.h>
#include <string.h>

enum { SUMMED_BYTES = 4096 };

static int complain(const char *what) {
    mrm_error_t error;
    if (mrm_last_error(&error) == 0) {
        fprintf(stderr, "%s: %s (%s, %" PRIu32 "%s)\n", what, error.message, error.name,
                error.number, error.retryable ? ", may be tried again" : "");
    }
    return 1;
}

static void print_tensor(const mrm_tensor_t *tensor) {
    const mrm_text_t dtype = mrm_dtype_name(tensor->dtype);
    printf("%.*s %.*s [", (int)tensor->name.len, tensor->name.data, (int)dtype.len, dtype.data);
    for (uint32_t i = 0; i < tensor->rank; i++) {
        printf("%s%" PRIu64, i == 0 ? "" : ", ", tensor->shape_ptr[i]);
    }
    printf("] %" PRIu64 " bytes, ", tensor->bytes);
    if (tensor->device >= 0) {
        printf("at %#" PRIx64 " on cuda:%" PRId32 "\n", tensor->device_ptr, tensor->device);
        return;
    }
    const unsigned char *bytes = tensor->data_ptr;
    uint64_t sum = 0;
    for (uint64_t i = 0; i < tensor->bytes && i < SUMMED_BYTES; i++) {
        sum += bytes[i];
    }
    printf("sum %" PRIu64 "\n", sum);
}

static int list(mrm_model_ref model) {
    mrm_model_info_t info = MRM_MODEL_INFO_INIT;
    if (mrm_model_info(model, &info) != 0) {
        return complain("info");
    }
    printf("%.*s: %zu tensors, %zu files, %" PRIu64 " bytes\n", (int)info.name.len, info.name.data,
           info.tensors, info.segments, info.bytes);
    for (size_t i = 0; i < info.tensors; i++) {
        mrm_tensor_t tensor;
        if (mrm_model_tensor_at(model, i, &tensor) != 0) {
            return complain("tensor");
        }
        print_tensor(&tensor);
    }
    return 0;
}

int main(int argc, char **argv) {
    if (argc != 2 && argc != 3) {
        fprintf(stderr, "usage: %s MODEL|PATH [DEVICE|best]\n", argv[0]);
        return 2;
    }
    mrm_client_h client = NULL;
    if (mrm_client_connect(NULL, &client) != 0) {
        return complain("connect");
    }
    const char *what = argv[1];
    const int is_path = what[0] == '/' || what[0] == '.';
    mrm_open_options_t options = MRM_OPEN_OPTIONS_INIT;
    if (argc == 3 && strcmp(argv[2], "best") == 0) {
        options.tier = MRM_TIER_E_BEST;
    } else if (argc == 3) {
        options.tier = MRM_TIER_E_DEVICE;
        options.device = argv[2];
    }
    mrm_model_h model = NULL;
    const int failed = is_path ? mrm_client_open_path(client, what, &options, &model)
                               : mrm_client_open(client, what, &options, &model);
    const int status = failed != 0 ? complain(what) : list(model);
    if (model != NULL) {
        mrm_model_close(model);
    }
    mrm_client_close(client);
    return status;
}
