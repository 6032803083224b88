//! chipbound-processor
