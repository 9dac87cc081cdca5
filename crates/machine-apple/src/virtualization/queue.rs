//! Values that belong to one serial dispatch queue.
//!
//! The framework aborts the process when a machine, or anything of it, is used off the queue it was
//! made for, even to read its state.

use dispatch2::{DispatchQueue, DispatchQueueAttr, DispatchRetained};
use objc2::rc::autoreleasepool;
use std::mem::ManuallyDrop;
use std::sync::Arc;

/// A value that is used, and dropped, on its queue only.
pub(super) struct OnQueue<T: 'static> {
    queue: DispatchRetained<DispatchQueue>,
    value: ManuallyDrop<T>,
}

// SAFETY: `value` is reached through `post` and `drop` only, which use it on `queue`. That is serial,
// so one thread at a time does, and dispatch orders what they see.
unsafe impl<T> Send for OnQueue<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for OnQueue<T> {}

/// Takes a value to a queue, or brings it back. Who sends it keeps no other reference.
pub(super) struct Carry<T>(T);

// SAFETY: every use moves the value, and with it the only reference, see where they are made.
unsafe impl<T> Send for Carry<T> {}

impl<T> Carry<T> {
    pub(super) fn new(value: T) -> Self {
        Self(value)
    }

    /// A method, so that closures take the whole and not its field.
    pub(super) fn take(self) -> T {
        self.0
    }
}

impl<T> OnQueue<T> {
    /// Makes a queue, and on it a value.
    pub(super) fn new<E: Send>(
        label: &str,
        make: impl FnOnce(&DispatchQueue) -> Result<T, E> + Send,
    ) -> Result<Arc<Self>, E> {
        let queue = DispatchQueue::new(label, DispatchQueueAttr::SERIAL);
        let mut slot: Option<Result<T, E>> = None;
        let out = Carry::new(&mut slot);
        let on = &queue;
        queue.exec_sync(move || *out.take() = Some(autoreleasepool(|_| make(on))));
        match slot {
            Some(Ok(value)) => Ok(Arc::new(Self {
                value: ManuallyDrop::new(value),
                queue,
            })),
            Some(Err(e)) => Err(e),
            // What is synchronous has run when it returns.
            None => unreachable!("dispatch_sync did not run its block"),
        }
    }

    /// Runs `f` on the queue, later, with a pool for what it autoreleases.
    pub(super) fn post(self: &Arc<Self>, f: impl FnOnce(&T) + Send + 'static) {
        let me = self.clone();
        self.queue
            .exec_async(move || autoreleasepool(|_| f(&me.value)));
    }
}

impl<T> Drop for OnQueue<T> {
    fn drop(&mut self) {
        // SAFETY: `value` is not used again here; the queue drops it.
        let value = Carry::new(unsafe { ManuallyDrop::take(&mut self.value) });
        self.queue
            .exec_async(move || autoreleasepool(|_| drop(value.take())));
    }
}
