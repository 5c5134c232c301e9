//! The C interface of the mrm client.
