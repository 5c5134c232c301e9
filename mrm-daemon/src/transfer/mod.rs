//! Blocking work: worker threads in lanes, and the loading of files into segments.
