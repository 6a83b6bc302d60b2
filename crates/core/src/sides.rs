//! What a backend that composes a local one and a remote one tells of them.

/// The two sides of a composed backend, and how many requests went where. Taken at one moment; numbers are of all time, where
/// nothing else is said.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SidesReport {
    /// The local side's name.
    pub local: &'static str,
    /// The remote side's name.
    pub remote: &'static str,
    /// Requests of whose reply something came from the local side.
    pub answered_local: u64,
    /// Requests of whose reply something came from the remote side.
    pub answered_remote: u64,
    /// Requests that ended with an error before anything came.
    pub failed: u64,
    /// Requests that were cancelled before anything came.
    pub cancelled: u64,
    /// Requests that were refused at once: every side that may answer is overloaded.
    pub refused: u64,
    /// Gauge: requests of which nothing has come yet.
    pub pending: u64,
    /// How often a side took a request, by the reason for which it was sent there.
    pub routes: Vec<SideRoute>,
}

/// How often a side took a request for a reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SideRoute {
    /// `local` or `remote`.
    pub side: &'static str,
    /// Why, in a word that never changes.
    pub reason: &'static str,
    /// How often.
    pub requests: u64,
}
