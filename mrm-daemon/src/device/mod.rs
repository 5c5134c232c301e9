//! The device tier's backend: weights in the memory of CUDA devices.
