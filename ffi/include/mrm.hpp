// mrm.hpp - the mrm client for C++17: handles that close themselves, errors that are thrown.
//
// Header-only, over mrm.h. A Client and a Model own what they stand for: they move, and do not
// copy (Model::clone makes a second hold). Views of text and bytes live as long as the Model.
//
//     mrm::Client client;
//     mrm::Model model = client.open("sentence/minilm");
//     mrm::Tensor bias = model.tensor("pooler.dense.bias");
//     const float *first = bias.as<float>(MRM_DTYPE_E_F32);

#ifndef MRM_HPP
#define MRM_HPP

#include "mrm.h"

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mrm {

// What a function of mrm.h refused. what() is the text of mrm_error_t.
class Error : public std::runtime_error {
public:
    explicit Error(const mrm_error_t &error)
        : std::runtime_error(error.message), code_(error.number), name_(error.name),
          retryable_(error.retryable), took_effect_(error.took_effect) {}

    // A number of mrm_error_e.
    std::uint32_t code() const noexcept { return code_; }
    // Its stable name, in snake case.
    const std::string &name() const noexcept { return name_; }
    // Whether the same call may succeed later with nothing changed.
    bool retryable() const noexcept { return retryable_; }
    // Whether the call changed anything in the daemon.
    bool took_effect() const noexcept { return took_effect_; }

private:
    std::uint32_t code_;
    std::string name_;
    bool retryable_;
    bool took_effect_;
};

// Throws the calling thread's last error unless `number` is 0.
inline void check(int number) {
    if (number != 0) {
        mrm_error_t error{};
        mrm_last_error(&error);
        throw Error(error);
    }
}

inline std::string_view view(const mrm_text_t &text) { return {text.data, text.len}; }

// One tensor; lives as long as its Model.
class Tensor {
public:
    explicit Tensor(const mrm_tensor_t &raw) : raw_(raw) {}

    std::string_view name() const { return view(raw_.name); }
    // A number of mrm_dtype_e.
    std::uint32_t dtype() const { return raw_.dtype; }
    std::size_t rank() const { return raw_.rank; }
    std::uint64_t dim(std::size_t i) const {
        return i < raw_.rank ? raw_.shape_ptr[i] : throw std::out_of_range("mrm: no such dimension");
    }
    // NULL on a device, and in a layout.
    const void *data() const { return raw_.data_ptr; }
    std::uint64_t bytes() const { return raw_.bytes; }
    // The ordinal of the device that it is on, if it is on one.
    std::optional<int> device() const {
        return raw_.device >= 0 ? std::optional<int>(raw_.device) : std::nullopt;
    }
    // Its address there, for reading only; 0 in host memory.
    std::uint64_t device_ptr() const { return raw_.device_ptr; }
    // Its position in the order of the files.
    std::size_t index() const { return raw_.index; }

    // The elements, if they are of type `dtype` and aligned for T; throws otherwise.
    template <typename T> const T *as(std::uint32_t dtype) const {
        if (dtype != raw_.dtype || sizeof(T) * 8 != mrm_dtype_bits(dtype)) {
            throw std::invalid_argument("mrm: the tensor has elements of another type");
        }
        if (raw_.device >= 0) {
            throw std::invalid_argument("mrm: the tensor is on a device; see device_ptr()");
        }
        if (raw_.data_ptr == nullptr) {
            throw std::invalid_argument("mrm: this is a layout; ask the model for the tensor");
        }
        if (reinterpret_cast<std::uintptr_t>(raw_.data_ptr) % alignof(T) != 0) {
            throw std::invalid_argument("mrm: the file does not align the tensor; copy it out");
        }
        return static_cast<const T *>(raw_.data_ptr);
    }

private:
    mrm_tensor_t raw_;
};

struct DlPackDeleter {
    void operator()(mrm_dl_managed_t *managed) const { managed->deleter(managed); }
};
// Owns a tensor that was lent by DLPack.
using DlPack = std::unique_ptr<mrm_dl_managed_t, DlPackDeleter>;

// A private mapping of one file, to be written to. It outlives its Model if need be.
class Copy {
public:
    // Takes a handle over.
    Copy(mrm_copy_h handle, void *data, std::uint64_t bytes) noexcept
        : handle_(handle), data_(data), bytes_(bytes) {}
    Copy(Copy &&other) noexcept
        : handle_(std::exchange(other.handle_, nullptr)), data_(other.data_), bytes_(other.bytes_) {}
    Copy &operator=(Copy &&other) noexcept {
        std::swap(handle_, other.handle_);
        std::swap(data_, other.data_);
        std::swap(bytes_, other.bytes_);
        return *this;
    }
    Copy(const Copy &) = delete;
    Copy &operator=(const Copy &) = delete;
    ~Copy() {
        if (handle_ != nullptr) {
            mrm_copy_close(handle_);
        }
    }

    void *data() const noexcept { return data_; }
    std::uint64_t bytes() const noexcept { return bytes_; }

private:
    mrm_copy_h handle_;
    void *data_;
    std::uint64_t bytes_;
};

// An open model.
class Model {
public:
    // Takes a handle over.
    explicit Model(mrm_model_h handle) noexcept : handle_(handle) {}
    Model(Model &&other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
    Model &operator=(Model &&other) noexcept {
        std::swap(handle_, other.handle_);
        return *this;
    }
    Model(const Model &) = delete;
    Model &operator=(const Model &) = delete;
    ~Model() {
        if (handle_ != nullptr) {
            mrm_model_close(handle_);
        }
    }

    // A second hold on the same memory.
    Model clone() const {
        mrm_model_h handle = nullptr;
        check(mrm_model_clone(handle_, &handle));
        return Model(handle);
    }

    mrm_model_info_t info() const {
        mrm_model_info_t info = MRM_MODEL_INFO_INIT;
        check(mrm_model_info(handle_, &info));
        return info;
    }

    Tensor tensor(std::string_view name) const {
        mrm_tensor_t raw{};
        check(mrm_model_tensor_find(handle_, name.data() == nullptr ? "" : name.data(),
                                    name.size(), &raw));
        return Tensor(raw);
    }

    // What the tensor is, without its elements and without waiting for it.
    Tensor layout(std::string_view name) const {
        mrm_tensor_t raw{};
        check(mrm_model_layout_find(handle_, name.data() == nullptr ? "" : name.data(),
                                    name.size(), &raw));
        return Tensor(raw);
    }

    // The same of all tensors, in the order of the files.
    std::vector<Tensor> layouts() const {
        std::vector<mrm_tensor_t> raw(info().tensors);
        if (!raw.empty()) {
            check(mrm_model_layouts(handle_, 0, raw.size(), raw.data()));
        }
        return std::vector<Tensor>(raw.begin(), raw.end());
    }

    // Whether a tensor is there, of a model that was opened by its layout: see mrm_tensor_ready.
    bool ready(const Tensor &tensor) const {
        bool ready = false;
        check(mrm_tensor_ready(handle_, tensor.index(), &ready));
        return ready;
    }

    // The tensor with its elements: waits for it, by default as long as the open would have.
    Tensor wait(const Tensor &tensor,
                std::optional<std::chrono::milliseconds> wait = std::nullopt) const {
        check(mrm_tensor_wait(handle_, tensor.index(), wait_ms(wait)));
        mrm_tensor_t raw{};
        check(mrm_model_tensor_at(handle_, tensor.index(), &raw));
        return Tensor(raw);
    }

    // Whether all of it is there.
    bool whole() const {
        bool whole = false;
        check(mrm_model_whole(handle_, &whole));
        return whole;
    }

    // Waits until all of it is there.
    void wait_whole(std::optional<std::chrono::milliseconds> wait = std::nullopt) const {
        check(mrm_model_wait(handle_, wait_ms(wait)));
    }

    // All tensors, in the order of the files. Waits for them.
    std::vector<Tensor> tensors() const {
        std::vector<mrm_tensor_t> raw(info().tensors);
        if (!raw.empty()) {
            check(mrm_model_tensors(handle_, 0, raw.size(), raw.data()));
        }
        return std::vector<Tensor>(raw.begin(), raw.end());
    }

    // Where on a device it is, if it is on one.
    std::optional<mrm_device_t> device() const {
        mrm_device_t device = MRM_DEVICE_INIT;
        const int number = mrm_model_device(handle_, &device);
        if (number == MRM_ERROR_E_NO_SUCH_ITEM) {
            return std::nullopt;
        }
        check(number);
        return device;
    }

    // Whether the daemon counts a lease on it now: see mrm_model_leased.
    bool leased() const {
        bool leased = false;
        check(mrm_model_leased(handle_, &leased));
        return leased;
    }

    // Why it is in host memory although Tier::best was asked for; else empty.
    std::string_view why_host() const {
        mrm_text_t why{};
        check(mrm_model_why_host(handle_, &why));
        return view(why);
    }

    // A tensor for other libraries, as a DLManagedTensorVersioned with the read-only flag. It keeps
    // the model open. release() it to give it away.
    DlPack dlpack(const Tensor &tensor) const {
        mrm_dl_managed_t *managed = nullptr;
        check(mrm_tensor_dlpack(handle_, tensor.index(), &managed));
        return DlPack(managed);
    }

    // Closes, or throws CLOSE_REFUSED when device memory cannot be unmapped now, and stays open.
    // `streams` may be captured: see mrm_model_close_on.
    void close(const std::vector<void *> &streams = {}) {
        if (handle_ != nullptr) {
            check(mrm_model_close_on(&handle_, streams.data(), streams.size()));
        }
    }

    // The exact image of one file.
    mrm_segment_t segment(std::size_t index) const {
        mrm_segment_t segment{};
        check(mrm_model_segment_at(handle_, index, &segment));
        return segment;
    }

    // The same to be written to, which nobody else sees: see mrm_model_segment_copy.
    Copy copy(std::size_t index) const {
        mrm_copy_h copy = nullptr;
        void *data = nullptr;
        std::uint64_t bytes = 0;
        check(mrm_model_segment_copy(handle_, index, &copy, &data, &bytes));
        return Copy(copy, data, bytes);
    }

    // The metadata value of `key`, if there is one.
    std::optional<std::string_view> metadata(std::string_view key) const {
        mrm_text_t value{};
        const int number = mrm_model_metadata_find(
            handle_, key.data() == nullptr ? "" : key.data(), key.size(), &value);
        if (number == MRM_ERROR_E_NO_SUCH_ITEM) {
            return std::nullopt;
        }
        check(number);
        return view(value);
    }

    mrm_model_ref get() const noexcept { return handle_; }

private:
    static std::uint64_t wait_ms(std::optional<std::chrono::milliseconds> wait) {
        return wait ? static_cast<std::uint64_t>(wait->count()) : MRM_WAIT_DEFAULT;
    }

    mrm_model_h handle_;
};

// What an open waits for.
enum class WaitFor : std::uint32_t {
    all = MRM_WAIT_FOR_E_ALL,
    // Tensors become ready one by one: see Model::ready and Model::wait.
    layout = MRM_WAIT_FOR_E_LAYOUT,
};

// In which memory the weights are wanted.
enum class Tier : std::uint32_t {
    host = MRM_TIER_E_HOST,
    device = MRM_TIER_E_DEVICE,
    best = MRM_TIER_E_BEST,
};

// How to open.
struct OpenOptions {
    // How long to wait for room and for the load.
    std::optional<std::chrono::milliseconds> wait;
    Tier tier = Tier::host;
    // Which device will do: "cuda:0", a UUID, or empty for any.
    std::string device;
    // Called with bytes in place and bytes of the whole. What it throws ends up at the caller of
    // open, once the open is over.
    std::function<void(std::uint64_t, std::uint64_t)> progress;
    // Whether every page in host memory is mapped before the open returns.
    bool populate = false;
    WaitFor wait_for = WaitFor::all;
    // How many bytes of the device are to stay free of weights while the model is open.
    std::uint64_t reserve_bytes = 0;
};

// A session with the daemon.
class Client {
public:
    // Connects to the node's daemon.
    Client() { check(mrm_client_connect(nullptr, &handle_)); }
    // Connects to the daemon behind a socket.
    explicit Client(const std::string &socket_path) {
        check(mrm_client_connect(socket_path.c_str(), &handle_));
    }
    // Connects to the node's daemon and opens a registered model, with one message there: what a
    // process does that was just started and needs one model.
    static std::pair<Client, Model> connect_and_open(const std::string &name,
                                                     const OpenOptions &options = {}) {
        Client client(nullptr);
        const auto both = [&client](const char *what, const mrm_open_options_t *how,
                                    mrm_model_h *model) {
            return mrm_client_connect_open(nullptr, what, how, &client.handle_, model);
        };
        Model model = open_by(both, name, options);
        return {std::move(client), std::move(model)};
    }
    Client(Client &&other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
    Client &operator=(Client &&other) noexcept {
        std::swap(handle_, other.handle_);
        return *this;
    }
    Client(const Client &) = delete;
    Client &operator=(const Client &) = delete;
    ~Client() {
        if (handle_ != nullptr) {
            mrm_client_close(handle_);
        }
    }

    // Opens a registered model.
    Model open(const std::string &name, const OpenOptions &options = {}) const {
        return open_with(mrm_client_open, name, options);
    }

    // Opens several registered models, with one message there: all of them, or it throws.
    std::vector<Model> open_many(const std::vector<std::string> &names,
                                 const OpenOptions &options = {}) const {
        std::vector<const char *> texts;
        for (const std::string &name : names) {
            texts.push_back(name.c_str());
        }
        Report report{options.progress, nullptr};
        const mrm_open_options_t raw = raw_of(options, report);
        std::vector<mrm_model_h> handles(names.size(), nullptr);
        std::vector<Model> models;
        models.reserve(names.size());
        const int number = mrm_client_open_many(handle_, texts.data(), texts.size(), &raw,
                                                handles.data());
        for (mrm_model_h handle : handles) {
            models.emplace_back(handle);
        }
        if (report.thrown) {
            std::rethrow_exception(report.thrown);
        }
        check(number);
        return models;
    }

    // Opens local files that nobody registered.
    Model open_path(const std::string &path, const OpenOptions &options = {}) const {
        return open_with(mrm_client_open_path, path, options);
    }

    // Says that a registered model will be opened so long from now: it may be loaded before that.
    void hint(const std::string &name, std::chrono::milliseconds in) const {
        const auto in_ms = in.count() > 0 ? static_cast<std::uint64_t>(in.count()) : 0;
        check(mrm_client_hint(handle_, name.c_str(), in_ms));
    }

    mrm_client_ref get() const noexcept { return handle_; }

private:
    struct Report {
        const std::function<void(std::uint64_t, std::uint64_t)> &progress;
        std::exception_ptr thrown;
    };

    // Connected to nothing yet.
    explicit Client(std::nullptr_t) noexcept {}

    template <typename Function>
    Model open_with(Function function, const std::string &what, const OpenOptions &options) const {
        const auto mine = [&](const char *named, const mrm_open_options_t *how,
                              mrm_model_h *model) {
            return function(handle_, named, how, model);
        };
        return open_by(mine, what, options);
    }

    template <typename Function>
    static Model open_by(Function function, const std::string &what, const OpenOptions &options) {
        Report report{options.progress, nullptr};
        const mrm_open_options_t raw = raw_of(options, report);
        mrm_model_h handle = nullptr;
        const int number = function(what.c_str(), &raw, &handle);
        Model model(handle);
        if (report.thrown) {
            std::rethrow_exception(report.thrown);
        }
        check(number);
        return model;
    }

    // Leads to `options` and to `report`.
    static mrm_open_options_t raw_of(const OpenOptions &options, Report &report) {
        mrm_open_options_t raw = MRM_OPEN_OPTIONS_INIT;
        if (options.wait) {
            raw.wait_ms = static_cast<std::uint64_t>(options.wait->count());
        }
        raw.populate = options.populate ? 1 : 0;
        raw.wait_for = static_cast<std::uint32_t>(options.wait_for);
        raw.reserve_bytes = options.reserve_bytes;
        raw.tier = static_cast<std::uint32_t>(options.tier);
        raw.device = options.device.empty() ? nullptr : options.device.c_str();
        if (options.progress) {
            raw.user = &report;
            raw.progress = [](std::uint64_t loaded, std::uint64_t total, void *user) {
                auto *to = static_cast<Report *>(user);
                try {
                    if (!to->thrown) {
                        to->progress(loaded, total);
                    }
                } catch (...) {
                    to->thrown = std::current_exception();
                }
            };
        }
        return raw;
    }

    mrm_client_h handle_ = nullptr;
};

} // namespace mrm

#endif // MRM_HPP
