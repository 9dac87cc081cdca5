//! The host's sleep through IOKit, for [`crate::power`].

use crate::power::{HostPower, Messages};
use dispatch2::{DispatchQueue, DispatchQueueAttr, DispatchRetained};
use objc2_core_foundation::CFString;
use objc2_io_kit::{
    IOAllowPowerChange, IODeregisterForSystemPower, IONotificationPort, IONotificationPortRef,
    IOPMAssertionCreateWithName, IOPMAssertionID, IOPMAssertionRelease, IORegisterForSystemPower,
    io_object_t, io_service_t, kIOPMAssertionLevelOn,
};
use std::ffi::c_void;
use std::io;
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::sync::mpsc;

/// Of `IOPMLib.h`, `kIOPMAssertPreventUserIdleSystemSleep`: the host stays awake with nobody at it.
const PREVENT_IDLE_SLEEP: &str = "PreventUserIdleSystemSleep";

/// Follows the host's sleep until it is dropped.
pub struct PowerWatch {
    /// Taken by `Drop`, which alone uses what follows.
    notifier: io_object_t,
    port: IONotificationPortRef,
    context: NonNull<Messages>,
    queue: DispatchRetained<DispatchQueue>,
}

// SAFETY: what is in it is used once more, by `Drop`.
unsafe impl Send for PowerWatch {}

/// Follows the host's sleep.
///
/// # Errors
/// When the system doesn't tell.
pub fn watch() -> io::Result<(PowerWatch, mpsc::Receiver<HostPower>)> {
    // Known once it is registered, which is before the first message: they come by a queue that the
    // port doesn't have until then.
    let root = Arc::new(AtomicU32::new(0));
    let allow = {
        let root = root.clone();
        Arc::new(move |message| {
            IOAllowPowerChange(root.load(Ordering::Acquire), message);
        })
    };
    let (messages, events) = Messages::new(allow);
    let context = NonNull::from(Box::leak(Box::new(messages)));
    let (mut port, mut notifier): (IONotificationPortRef, io_object_t) = (null_mut(), 0);
    // SAFETY: the places to write to are there for the call, the context until `Drop`.
    let registered = unsafe {
        IORegisterForSystemPower(
            context.as_ptr().cast(),
            &raw mut port,
            Some(on_power),
            &raw mut notifier,
        )
    };
    if registered == 0 {
        // SAFETY: nobody else has it.
        drop(unsafe { Box::from_raw(context.as_ptr()) });
        return Err(io::Error::other("the system does not tell of its sleep"));
    }
    root.store(registered, Ordering::Release);
    let queue = DispatchQueue::new("dev.slicer.power", DispatchQueueAttr::SERIAL);
    // SAFETY: the port was made just now.
    unsafe { IONotificationPort::set_dispatch_queue(port, Some(&queue)) };
    let watch = PowerWatch {
        notifier,
        port,
        context,
        queue,
    };
    Ok((watch, events))
}

unsafe extern "C-unwind" fn on_power(
    context: *mut c_void,
    _: io_service_t,
    kind: u32,
    message: *mut c_void,
) {
    // SAFETY: it is what was registered, and there until `Drop` has ended the messages.
    let messages = unsafe { &*context.cast::<Messages>() };
    messages.on_message(kind, message as isize);
}

impl Drop for PowerWatch {
    fn drop(&mut self) {
        // SAFETY: all of it is from `watch`, and given back once; a message that is being received
        // is over when the queue has run what comes after.
        unsafe {
            IODeregisterForSystemPower(&raw mut self.notifier);
            IONotificationPort::destroy(self.port);
        }
        self.queue.exec_sync(|| {});
        // SAFETY: no message comes any more.
        drop(unsafe { Box::from_raw(self.context.as_ptr()) });
    }
}

/// Keeps the host from going to sleep by itself, until it is dropped.
pub struct Assertion(IOPMAssertionID);

/// Keeps the host awake, with a reason that `pmset -g assertions` shows.
///
/// # Errors
/// When the system refuses.
pub fn keep_awake(why: &str) -> io::Result<Assertion> {
    let mut id: IOPMAssertionID = 0;
    let (kind, why) = (
        CFString::from_static_str(PREVENT_IDLE_SLEEP),
        CFString::from_str(why),
    );
    // SAFETY: strings, and a place to write to, which are there for the call.
    let code = unsafe {
        IOPMAssertionCreateWithName(Some(&kind), kIOPMAssertionLevelOn, Some(&why), &raw mut id)
    };
    if code == 0 {
        Ok(Assertion(id))
    } else {
        Err(io::Error::other(format!("the system says {code:#x}")))
    }
}

impl Drop for Assertion {
    fn drop(&mut self) {
        IOPMAssertionRelease(self.0);
    }
}
