//! Scheduled<E>: turns any Engine into a ModelBackend.
