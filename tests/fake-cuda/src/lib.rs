//! A CUDA driver library without a GPU: device memory is a memfd, and several processes share a
//! pretended machine, so that real clients and a real daemon run against it.
//!
//! # Running a program against it
//!
//! ```sh
//! cargo build -p mrm-fake-cuda
//! export LD_LIBRARY_PATH=$(target/debug/mrm-fake-cuda-dir /tmp/fake/driver)
//! export MRM_FAKE_CUDA_DIR=/tmp/fake/machine      # one directory, one pretended machine
//! export MRM_FAKE_CUDA_DEVICES=2 MRM_FAKE_CUDA_CAPACITY=8GiB
//! some-program                                    # its dlopen("libcuda.so.1") finds this
//! ```
//!
//! Rust tests take this crate as a dev-dependency, which builds the library, and call
//! [`install::driver_dir`]. Give every test a fresh `MRM_FAKE_CUDA_DIR`.
//!
//! # Settings
//!
//! Each process reads its environment once, at its first call. Processes of one machine should
//! agree on devices and capacity.
//!
//! | variable | default | meaning |
//! |---|---|---|
//! | `MRM_FAKE_CUDA_DIR` | in the temporary directory, by user | where processes of a machine meet |
//! | `MRM_FAKE_CUDA_DEVICES` | 2 | 0 to 16; `cuInit` returns 100 for 0 |
//! | `MRM_FAKE_CUDA_CAPACITY` | 8GiB | memory of each device |
//! | `MRM_FAKE_CUDA_CONTEXT_BYTES` | 0 | what a primary context costs per process |
//! | `MRM_FAKE_CUDA_DRIVER_VERSION` | 12040 | |
//! | `MRM_FAKE_CUDA_INIT_ERROR` | 0 | what `cuInit` returns; 34 is returned by every call |
//! | `MRM_FAKE_CUDA_MISSING` | | `a,b`: `cuGetProcAddress` finds them not, calls return 500 |
//! | `MRM_FAKE_CUDA_NO_VMM`, `_NO_POSIX_FD`, `_NO_IPC`, `_NO_PEER`, `_NO_READ_ONLY_REGISTER` | | 1 takes the ability away |
//! | `MRM_FAKE_CUDA_FAULTS` | | rules, below |
//! | `MRM_FAKE_CUDA_LOST` | | `CODE[@DEVICE],...`: calls that concern the device return the code; 1 is short for 719 |
//! | `MRM_FAKE_CUDA_DELAY_US` | 0 | `500`: each queued copy, fill or host function; `cuMemCreate:500,*:100`: by function |
//! | `MRM_FAKE_CUDA_LOG` | | a file to which each call appends `pid function result` |
//! | `CUDA_VISIBLE_DEVICES` | all | ordinals, and UUIDs or their beginnings (`GPU-f1...` is device 1) |
//!
//! A symbol that `dlsym` must not find is left out of the library itself:
//! `mrm-fake-cuda-dir DIR cuMemCreate`, or the second argument of [`install::driver_dir`].
//!
//! # Faults
//!
//! `function:code[:nth[+]][:once|sticky|async]`, separated by commas or line ends. `function` is
//! an exported name (`cuMemcpyHtoDAsync_v2`) or `*` for any call; `nth` counts from 1, and `+`
//! means that call and all later ones. Codes may be ones that nobody has heard of (4242).
//! A fault strikes before the function does anything.
//!
//! - `once`: only this call fails. The default, except for
//! - `sticky`: from then on every call in the context returns the code, until the process ends.
//!   The default for 46, 214, 220, 226, 700, 702, 710, 714 to 719, 721, 911.
//! - `async`: the call returns 0; the work that it queued ends in the code, which then sticks.
//!
//! The same rules in the file `faults` of the machine's directory concern all processes, in
//! `faults.PID` one process. They are read again when the file changes, and their calls are
//! counted from then on. A line `lost:719@1` there loses a device of a running machine. Replace
//! the file in one step (write another, rename it).
//!
//! # Counting calls
//!
//! The log tells how often one process called what. Its line is in the file before a call returns,
//! whole, whichever threads and processes write beside it; a call that a fault struck is there with
//! its code. So a test notes how many lines of a process there are that name the functions in
//! question, has it do something, and counts again:
//!
//! ```
//! fn calls(log: &str, pid: u32, function: &str) -> usize {
//!     let start = format!("{pid} {function} ");
//!     log.lines().filter(|line| line.starts_with(&start)).count()
//! }
//! assert_eq!(calls("7 cuMemMap 0\n8 cuMemMap 0\n7 cuMemMap 2\n", 7, "cuMemMap"), 2);
//! ```
//!
//! To print an error is a call too (`cuGetErrorName`), and a program may push and pop its context
//! around each of its steps: count by names, or leave out those. Functions that were not called
//! because their process holds what they would return are not there; what the process does at its
//! first call (`cuInit`, devices, contexts) is, so let it do that before the first count.
//!
//! # What holds
//!
//! - Device memory counts against the device as long as a handle, a mapping or a descriptor of it
//!   lives anywhere, also one that is in no process but in a socket's queue; it comes back by
//!   itself when the last is gone, also by SIGKILL. `cuMemGetInfo` is exact at that moment.
//! - An exported descriptor keeps the bytes after its exporter died. An import is a handle of its
//!   own. A mapping has no access until `cuMemSetAccess`; one for reading faults on a write
//!   (SIGSEGV in this process, 700 for a copy).
//! - `cuMemAlloc` below 1 MiB shares blocks of 2 MiB, and a legacy handle opens the whole block.
//!   It opens in no process that made it (201), once per context with a count, and not after the
//!   exporter freed or died (400). VMM memory has no legacy handle (1).
//! - Streams are threads: a copy from pinned memory reads its source when it is its turn, one from
//!   other memory before the call returns. The default stream keeps order with blocking streams.
//! - Registered memory that is shared and writable cannot be sealed against writing (EBUSY).
//! - After `fork` every call of the child returns 3, and it has none of the mappings.
//! - A host function that calls the driver gets 800.
//!
//! # What is not modelled
//!
//! Kernels, modules, managed memory, memory pools, arrays, textures, IPC events, multicast, fabric
//! handles, MIG, MPS, contexts other than primary ones, per-thread default streams (they are the
//! default stream), and most device attributes (0). Device addresses are addresses of the
//! process: the host can follow them, and access is the strongest that any device was given.
//! Captured work is dropped, and every graph is the same empty one. A block costs one file
//! descriptor; `cuInit` raises the soft limit of open files to the hard one. Legacy handles go
//! through `/proc/PID/fd`: same user, same PID namespace. Accounting needs `/proc/locks`.
//! Nothing here measures speed. Which code hardware returns for a misuse is documented for most
//! calls only as a set; the choice within the set is ours.

pub mod abi;
pub mod api;
pub mod args;
mod block;
mod call;
pub mod code;
mod context;
mod faults;
pub mod install;
mod process;
mod registry;
mod settings;
mod space;
mod stream;

pub use settings::uuid_text;
