//! chipbound-sealing
