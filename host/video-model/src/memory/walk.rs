//! The bytes that are live at each moment of a phase.

/// Adds what operations make and takes off what is dropped; remembers the most that there was.
#[derive(Debug, Default)]
pub(super) struct Walk {
    live: u64,
    peak: u64,
}

impl Walk {
    /// Something is made. Returns its size, for [`Walk::drop`].
    pub(super) fn make(&mut self, bytes: u64) -> u64 {
        self.live += bytes;
        self.peak = self.peak.max(self.live);
        bytes
    }

    /// Something is dropped.
    pub(super) fn drop(&mut self, bytes: u64) {
        self.live -= bytes;
    }

    /// Something is made and dropped before anything else happens.
    pub(super) fn pass(&mut self, bytes: u64) {
        let bytes = self.make(bytes);
        self.drop(bytes);
    }

    /// The most that was live.
    pub(super) fn peak(&self) -> u64 {
        self.peak
    }
}
