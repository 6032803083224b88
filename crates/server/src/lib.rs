//! chipbound-server, the program distribution device (source \[29\], 93).

pub mod storage;
