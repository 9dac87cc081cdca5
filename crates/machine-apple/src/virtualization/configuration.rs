//! From a plan to the framework's configuration, line by line.

use crate::framework::VzError;
use crate::plan::{DiskPlan, Plan, SharePlan, Synchronisation};
use objc2::rc::Retained;
use objc2::{AnyThread, Message, available};
use objc2_foundation::{NSArray, NSData, NSString, NSURL};
use objc2_virtualization::{
    VZDirectorySharingDeviceConfiguration, VZDiskImageCachingMode,
    VZDiskImageStorageDeviceAttachment, VZDiskImageSynchronizationMode, VZFileSerialPortAttachment,
    VZGenericMachineIdentifier, VZGenericPlatformConfiguration, VZLinuxBootLoader,
    VZLinuxRosettaDirectoryShare, VZMACAddress, VZNATNetworkDeviceAttachment, VZSharedDirectory,
    VZSingleDirectoryShare, VZStorageDeviceConfiguration, VZVirtioBlockDeviceConfiguration,
    VZVirtioConsoleDeviceSerialPortConfiguration, VZVirtioEntropyDeviceConfiguration,
    VZVirtioFileSystemDeviceConfiguration, VZVirtioNetworkDeviceConfiguration,
    VZVirtioSocketDeviceConfiguration, VZVirtioTraditionalMemoryBalloonDeviceConfiguration,
    VZVirtualMachineConfiguration,
};
use std::path::Path;

/// A file's place, as all of the framework wants it.
pub(super) fn url(path: &Path) -> Result<Retained<NSURL>, VzError> {
    NSURL::from_file_path(path)
        .ok_or_else(|| VzError::other(format!("{} is no path of a file", path.display())))
}

/// One device of a kind, as every setter wants it.
fn one<T: Message>(device: Retained<T>) -> Retained<NSArray<T>> {
    NSArray::from_retained_slice(&[device])
}

/// The configuration, valid.
pub(super) fn build(plan: &Plan) -> Result<Retained<VZVirtualMachineConfiguration>, VzError> {
    let storage = plan.disks.iter().map(disk).collect::<Result<Vec<_>, _>>()?;
    let mut sharing = plan
        .shares
        .iter()
        .map(share)
        .collect::<Result<Vec<_>, _>>()?;
    if let Some(tag) = plan.rosetta {
        sharing.push(rosetta(tag)?);
    }
    // SAFETY: constructors and setters, with arguments of the types that are documented, on objects
    // nobody else knows of.
    unsafe {
        let configuration = VZVirtualMachineConfiguration::new();
        configuration.setCPUCount(plan.cpus);
        configuration.setMemorySize(plan.memory_bytes);
        configuration.setBootLoader(Some(&*boot_loader(plan)?));
        configuration.setPlatform(&*platform(plan)?);
        configuration.setStorageDevices(&NSArray::from_retained_slice(&storage));
        if let Some(mac) = &plan.mac {
            let card = VZVirtioNetworkDeviceConfiguration::new();
            card.setAttachment(Some(&VZNATNetworkDeviceAttachment::new()));
            card.setMACAddress(&*mac_address(mac)?);
            configuration.setNetworkDevices(&one(card.into_super()));
        }
        configuration.setDirectorySharingDevices(&NSArray::from_retained_slice(&sharing));
        let vsock = VZVirtioSocketDeviceConfiguration::new();
        configuration.setSocketDevices(&one(vsock.into_super()));
        let entropy = VZVirtioEntropyDeviceConfiguration::new();
        configuration.setEntropyDevices(&one(entropy.into_super()));
        let balloon = VZVirtioTraditionalMemoryBalloonDeviceConfiguration::new();
        configuration.setMemoryBalloonDevices(&one(balloon.into_super()));
        let console = VZVirtioConsoleDeviceSerialPortConfiguration::new();
        let file = VZFileSerialPortAttachment::initWithURL_append_error(
            VZFileSerialPortAttachment::alloc(),
            &*url(&plan.console)?,
            true,
        )?;
        console.setAttachment(Some(&file));
        configuration.setSerialPorts(&one(console.into_super()));
        configuration.validateWithError()?;
        Ok(configuration)
    }
}

/// Whether such a machine can be saved, or why not. The question is known from macOS 14 on.
pub(super) fn can_save(configuration: &VZVirtualMachineConfiguration) -> Result<(), VzError> {
    if !available!(macos = 14.0) {
        return Err(VzError::other("it needs macOS 14 or later"));
    }
    // SAFETY: the method is there, and asks only.
    Ok(unsafe { configuration.validateSaveRestoreSupportWithError() }?)
}

fn boot_loader(plan: &Plan) -> Result<Retained<VZLinuxBootLoader>, VzError> {
    let (kernel, initramfs) = (url(&plan.kernel)?, url(&plan.initramfs)?);
    // SAFETY: as in `build`.
    unsafe {
        let loader = VZLinuxBootLoader::initWithKernelURL(VZLinuxBootLoader::alloc(), &kernel);
        loader.setInitialRamdiskURL(Some(&initramfs));
        loader.setCommandLine(&NSString::from_str(&plan.cmdline));
        Ok(loader)
    }
}

fn platform(plan: &Plan) -> Result<Retained<VZGenericPlatformConfiguration>, VzError> {
    let data = NSData::with_bytes(&plan.identifier);
    // SAFETY: as in `build`.
    unsafe {
        let platform = VZGenericPlatformConfiguration::new();
        let identifier = VZGenericMachineIdentifier::initWithDataRepresentation(
            VZGenericMachineIdentifier::alloc(),
            &data,
        );
        let identifier = identifier
            .ok_or_else(|| VzError::other("the framework does not know its machine identifier"))?;
        platform.setMachineIdentifier(&identifier);
        Ok(platform)
    }
}

fn disk(plan: &DiskPlan) -> Result<Retained<VZStorageDeviceConfiguration>, VzError> {
    let file = url(&plan.path)?;
    let id = NSString::from_str(plan.id);
    let synchronisation = match plan.synchronisation {
        Synchronisation::Fsync => VZDiskImageSynchronizationMode::Fsync,
        Synchronisation::None => VZDiskImageSynchronizationMode::None,
    };
    // SAFETY: as in `build`.
    unsafe {
        VZVirtioBlockDeviceConfiguration::validateBlockDeviceIdentifier_error(&id)?;
        let image =
            VZDiskImageStorageDeviceAttachment::initWithURL_readOnly_cachingMode_synchronizationMode_error(
                VZDiskImageStorageDeviceAttachment::alloc(),
                &file,
                plan.read_only,
                VZDiskImageCachingMode::Cached,
                synchronisation,
            )
            .map_err(|e| VzError::other(format!("{}: {}", plan.path.display(), VzError::from(e))))?;
        let device = VZVirtioBlockDeviceConfiguration::initWithAttachment(
            VZVirtioBlockDeviceConfiguration::alloc(),
            &image,
        );
        device.setBlockDeviceIdentifier(&id);
        Ok(device.into_super())
    }
}

fn mac_address(text: &str) -> Result<Retained<VZMACAddress>, VzError> {
    let string = NSString::from_str(text);
    // SAFETY: as in `build`.
    unsafe { VZMACAddress::initWithString(VZMACAddress::alloc(), &string) }
        .ok_or_else(|| VzError::other(format!("{text} is no hardware address")))
}

fn share(plan: &SharePlan) -> Result<Retained<VZDirectorySharingDeviceConfiguration>, VzError> {
    let folder = url(&plan.path)?;
    let tag = NSString::from_str(&plan.tag);
    // SAFETY: as in `build`.
    unsafe {
        VZVirtioFileSystemDeviceConfiguration::validateTag_error(&tag)?;
        let folder = VZSharedDirectory::initWithURL_readOnly(
            VZSharedDirectory::alloc(),
            &folder,
            plan.read_only,
        );
        let share =
            VZSingleDirectoryShare::initWithDirectory(VZSingleDirectoryShare::alloc(), &folder);
        let device = VZVirtioFileSystemDeviceConfiguration::initWithTag(
            VZVirtioFileSystemDeviceConfiguration::alloc(),
            &tag,
        );
        device.setShare(Some(&share));
        Ok(device.into_super())
    }
}

fn rosetta(tag: &str) -> Result<Retained<VZDirectorySharingDeviceConfiguration>, VzError> {
    let tag = NSString::from_str(tag);
    // SAFETY: as in `build`.
    unsafe {
        let share =
            VZLinuxRosettaDirectoryShare::initWithError(VZLinuxRosettaDirectoryShare::alloc())?;
        let device = VZVirtioFileSystemDeviceConfiguration::initWithTag(
            VZVirtioFileSystemDeviceConfiguration::alloc(),
            &tag,
        );
        device.setShare(Some(&share));
        Ok(device.into_super())
    }
}
