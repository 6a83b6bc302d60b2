//! The behaviour suites that every engine and every backend must pass.
