//! chipbound-loader
