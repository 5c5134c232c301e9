// Opens a model by its layout and takes its first tensor before the last is there, opens it twice,
// finds its largest tensor, writes to a copy of one's own, and shows that handles close themselves,
// also when an exception passes.
//
//     c++ -std=c++17 raii.cpp $(pkg-config --cflags --libs mrm) -o raii
//     ./raii MODEL

#include <algorithm>
#include <iostream>
#include <mrm.hpp>

namespace {

void show(const mrm::Model &model) {
    const mrm_model_info_t info = model.info();
    std::cout << mrm::view(info.name) << ": " << info.tensors << " tensors, " << info.bytes
              << " bytes\n";
    const std::vector<mrm::Tensor> tensors = model.tensors();
    const auto largest =
        std::max_element(tensors.begin(), tensors.end(),
                         [](const auto &a, const auto &b) { return a.bytes() < b.bytes(); });
    if (largest == tensors.end()) {
        return;
    }
    std::cout << "largest: " << largest->name() << " [";
    for (std::size_t i = 0; i < largest->rank(); i++) {
        std::cout << (i == 0 ? "" : ", ") << largest->dim(i);
    }
    std::cout << "]\n";
    if (largest->dtype() == MRM_DTYPE_E_F32 && largest->bytes() >= sizeof(float)) {
        std::cout << "its first element: " << *largest->as<float>(MRM_DTYPE_E_F32) << '\n';
    }
}

// The file's image to be written to, which leaves the shared one as it is.
void scribble(const mrm::Model &model, const mrm::Tensor &tensor) {
    mrm::Copy copy = model.copy(0);
    auto *bytes = static_cast<unsigned char *>(copy.data());
    bytes[model.segment(0).bytes - 1] ^= 0xff;
    std::cout << "a copy of " << copy.bytes() << " bytes, of which " << tensor.bytes()
              << " are of " << tensor.name() << '\n';
}

} // namespace

int main(int argc, char **argv) {
    if (argc != 2) {
        std::cerr << "usage: " << argv[0] << " MODEL\n";
        return 2;
    }
    try {
        mrm::OpenOptions options;
        options.wait = std::chrono::seconds(60);
        options.progress = [](std::uint64_t loaded, std::uint64_t total) {
            std::cerr << loaded << " of " << total << " bytes\n";
        };
        options.wait_for = mrm::WaitFor::layout;
        auto [client, model] = mrm::Client::connect_and_open(argv[1], options);
        const std::vector<mrm::Tensor> layouts = model.layouts();
        if (!layouts.empty()) {
            const bool ready = model.ready(layouts.front());
            const mrm::Tensor first = model.wait(layouts.front());
            std::cerr << first.name() << (ready ? " was" : " was not yet") << " there\n";
            model.wait_whole();
            scribble(model, first);
        }
        for (const mrm::Model &again : client.open_many({argv[1], argv[1]})) {
            std::cerr << mrm::view(again.info().name) << " once more\n";
        }
        show(model);

        mrm::Model second = model.clone();
        model = std::move(second);
        try {
            model.tensor("no such tensor");
        } catch (const mrm::Error &error) {
            std::cout << "as expected: " << error.name() << '\n';
        }
        return 0;
    } catch (const mrm::Error &error) {
        std::cerr << error.what() << " (" << error.name() << ", " << error.code() << ")\n";
        return 1;
    }
}
