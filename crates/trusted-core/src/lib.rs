//! chipbound-trusted-core
