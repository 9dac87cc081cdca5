//! A machine of the framework, on its queue.

use super::configuration::url;
use super::error::caught;
use super::queue::{Carry, OnQueue};
use crate::framework::{Done, Event, Operation, Vm, VzError};
use block2::RcBlock;
use objc2::rc::Retained;
use objc2::runtime::ProtocolObject;
use objc2::{AnyThread, DefinedClass, define_class, msg_send};
use objc2_foundation::{NSError, NSObject, NSObjectProtocol};
use objc2_virtualization::{
    VZNetworkDevice, VZVirtioSocketConnection, VZVirtioSocketDevice, VZVirtualMachine,
    VZVirtualMachineConfiguration, VZVirtualMachineDelegate,
};
use std::cell::Cell;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use tokio::sync::mpsc;

define_class!(
    // SAFETY: NSObject asks nothing of its subclasses, and this one has no Drop.
    #[unsafe(super(NSObject))]
    #[name = "SlicerVirtualMachineDelegate"]
    #[ivars = mpsc::Sender<Event>]
    struct Delegate;

    // SAFETY: nothing is asked.
    unsafe impl NSObjectProtocol for Delegate {}

    // SAFETY: the signatures are the protocol's.
    unsafe impl VZVirtualMachineDelegate for Delegate {
        #[unsafe(method(guestDidStopVirtualMachine:))]
        fn guest_did_stop(&self, _: &VZVirtualMachine) {
            self.tell(Event::GuestStopped);
        }

        #[unsafe(method(virtualMachine:didStopWithError:))]
        fn did_stop_with_error(&self, _: &VZVirtualMachine, error: &NSError) {
            self.tell(Event::Failed(error.into()));
        }

        #[unsafe(method(virtualMachine:networkDevice:attachmentWasDisconnectedWithError:))]
        fn network_lost(&self, _: &VZVirtualMachine, _: &VZNetworkDevice, error: &NSError) {
            // The rest of the room is for the machine's end.
            if self.ivars().capacity() > 1 {
                self.tell(Event::NetworkLost(error.into()));
            }
        }
    }
);

impl Delegate {
    fn new(events: mpsc::Sender<Event>) -> Retained<Self> {
        let this = Self::alloc().set_ivars(events);
        // SAFETY: NSObject's init.
        unsafe { msg_send![super(this), init] }
    }

    fn tell(&self, event: Event) {
        // When nobody listens any more, nobody needs to know.
        let _ = self.ivars().try_send(event);
    }
}

/// What lives on the queue.
struct Inner {
    vm: Retained<VZVirtualMachine>,
    /// The machine doesn't keep its delegate.
    _delegate: Retained<Delegate>,
}

/// A machine.
pub struct VzVm {
    inner: Arc<OnQueue<Inner>>,
    can_save: Result<(), VzError>,
}

/// A [`Done`] in a block, which may be called any number of times as far as its type tells.
struct Once<T>(Rc<Cell<Option<Done<T>>>>);

impl<T> Once<T> {
    fn new(done: Done<T>) -> Self {
        Self(Rc::new(Cell::new(Some(done))))
    }

    fn again(&self) -> Self {
        Self(self.0.clone())
    }

    fn tell(&self, result: Result<T, VzError>) {
        if let Some(done) = self.0.take() {
            // When nobody waits any more, nobody needs to know.
            let _ = done.send(result);
        }
    }
}

impl VzVm {
    pub(super) fn new(
        configuration: Retained<VZVirtualMachineConfiguration>,
        can_save: Result<(), VzError>,
        events: mpsc::Sender<Event>,
    ) -> Result<Self, VzError> {
        let configuration = Carry::new(configuration);
        let inner = OnQueue::new("dev.slicer.vm", move |queue| {
            let configuration = configuration.take();
            caught(|| {
                let vm = VZVirtualMachine::alloc();
                // SAFETY: the configuration is valid; the queue is serial, and this runs on it.
                let vm = unsafe {
                    VZVirtualMachine::initWithConfiguration_queue(vm, &configuration, queue)
                };
                let delegate = Delegate::new(events);
                // SAFETY: on the machine's queue.
                unsafe { vm.setDelegate(Some(ProtocolObject::from_ref(&*delegate))) };
                Ok(Inner {
                    vm,
                    _delegate: delegate,
                })
            })
        })?;
        Ok(Self { inner, can_save })
    }
}

impl Vm for VzVm {
    fn can_save(&self) -> Result<(), VzError> {
        self.can_save.clone()
    }

    fn begin(&self, operation: Operation, done: Done<()>) {
        self.inner.post(move |inner| {
            let done = Once::new(done);
            if let Err(e) = caught(|| begin(&inner.vm, &operation, &done)) {
                done.tell(Err(e));
            }
        });
    }

    fn connect(&self, port: u32, done: Done<OwnedFd>) {
        self.inner.post(move |inner| {
            let done = Once::new(done);
            if let Err(e) = caught(|| connect(&inner.vm, port, &done)) {
                done.tell(Err(e));
            }
        });
    }
}

/// Begins an operation. Runs on the machine's queue.
fn begin(vm: &VZVirtualMachine, operation: &Operation, done: &Once<()>) -> Result<(), VzError> {
    let told = done.again();
    let block = RcBlock::new(move |error: *mut NSError| {
        // SAFETY: nil, or an error for as long as this call.
        let error = unsafe { error.as_ref() };
        told.tell(error.map_or(Ok(()), |e| Err(e.into())));
    });
    // SAFETY: on the machine's queue; what is begun keeps a copy of the block. Saving and restoring
    // are asked for from macOS 14 on only, see `Host::save_restore`.
    unsafe {
        match operation {
            Operation::Start => vm.startWithCompletionHandler(&block),
            Operation::Pause => vm.pauseWithCompletionHandler(&block),
            Operation::Resume => vm.resumeWithCompletionHandler(&block),
            Operation::Stop => vm.stopWithCompletionHandler(&block),
            Operation::Save(file) => {
                vm.saveMachineStateToURL_completionHandler(&*url(file)?, &block);
            }
            Operation::Restore(file) => {
                vm.restoreMachineStateFromURL_completionHandler(&*url(file)?, &block);
            }
            Operation::RequestStop => {
                vm.requestStopWithError()?;
                done.tell(Ok(()));
            }
        }
    }
    Ok(())
}

/// Begins to connect. Runs on the machine's queue.
fn connect(vm: &VZVirtualMachine, port: u32, done: &Once<OwnedFd>) -> Result<(), VzError> {
    let told = done.again();
    let block = RcBlock::new(
        move |connection: *mut VZVirtioSocketConnection, error: *mut NSError| {
            // SAFETY: nil, or an object for as long as this call.
            let result = match unsafe { (connection.as_ref(), error.as_ref()) } {
                (Some(connection), _) => own(connection),
                (None, Some(e)) => Err(e.into()),
                (None, None) => Err(VzError::other("neither a connection nor an error")),
            };
            told.tell(result);
        },
    );
    // SAFETY: on the machine's queue; what is begun keeps a copy of the block.
    unsafe {
        let devices = vm.socketDevices();
        let device = devices.firstObject();
        let device = device
            .as_ref()
            .and_then(|d| d.downcast_ref::<VZVirtioSocketDevice>())
            .ok_or_else(|| VzError::other("the machine has no vsock"))?;
        device.connectToPort_completionHandler(port, &block);
    }
    Ok(())
}

/// The framework closes the connection's descriptor with it, so this is another one.
fn own(connection: &VZVirtioSocketConnection) -> Result<OwnedFd, VzError> {
    // SAFETY: on the queue; the descriptor is open for as long as the connection is, which outlives
    // this call, or -1.
    let fd = unsafe {
        match connection.fileDescriptor() {
            -1 => return Err(VzError::other("the connection is closed already")),
            fd => BorrowedFd::borrow_raw(fd),
        }
    };
    fd.try_clone_to_owned()
        .map_err(|e| VzError::other(format!("cannot take over the connection: {e}")))
}
