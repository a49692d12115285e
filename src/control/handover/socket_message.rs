//! The message that carries listening sockets between two processes.
//!
//! It has a length of 4 bytes in network byte order, a JSON description of that length, and the
//! file descriptors as ancillary data. The module does not know when sockets are handed over.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream as StdUnixStream,
    },
    time::Duration,
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde_json::{Value, json};
use tokio::net::UnixStream;

use crate::state::instance::listener_sockets::BoundSocket;

/// Maximum number of sockets in a handover. Linux sends at most 253 descriptors in one message;
/// an instance has far fewer listeners.
const MAX_SOCKETS: usize = 128;

/// Maximum size in bytes of the JSON description of the sockets.
const MAX_DESCRIPTION_BYTES: usize = 64 << 10;

/// Accepts peers of the same user, and root, which has full access anyway.
pub(super) fn verify_peer_user(uid: u32) -> io::Result<()> {
    if uid == rustix::process::geteuid().as_raw() || uid == 0 {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::PermissionDenied,
        format!("the other process is one of the user {uid}"),
    ))
}

/// Sends the sockets with their owners and addresses, and the time since this process became
/// ready.
///
/// # Errors
/// If there are more than 128 sockets, or the message cannot be sent as a whole.
pub(super) fn send_sockets(
    stream: &UnixStream,
    sockets: &[BoundSocket],
    ready_for: Option<Duration>,
) -> io::Result<()> {
    if sockets.len() > MAX_SOCKETS {
        return Err(io::Error::other(format!(
            "there are {} sockets, and no more than {MAX_SOCKETS} can be handed over",
            sockets.len()
        )));
    }
    let described: Vec<Value> = sockets
        .iter()
        .map(|bound| json!({"owner": bound.owner, "asked": bound.requested_address.to_string()}))
        .collect();
    let ready_for = ready_for.and_then(|age| u64::try_from(age.as_millis()).ok());
    let description =
        serde_json::to_vec(&json!({"sockets": described, "ready_for_ms": ready_for}))?;
    let handles: Vec<_> = sockets.iter().map(|bound| bound.socket.as_fd()).collect();
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_SOCKETS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&handles));
    // The length comes first, so that the receiver can detect the end of the description.
    let length = u32::try_from(description.len())
        .map_err(io::Error::other)?
        .to_be_bytes();
    let whole = [&length[..], &description].concat();
    let sent = sendmsg(
        stream,
        &[IoSlice::new(&whole)],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )?;
    if sent == whole.len() {
        Ok(())
    } else {
        Err(io::ErrorKind::WriteZero.into())
    }
}

/// Receives the JSON description of the sockets, and their file descriptors in the same order.
///
/// # Errors
/// If the description is larger than 64 KiB, or the connection ends or times out.
pub(super) fn receive_sockets(stream: &StdUnixStream) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let (mut description, mut handles) = (Vec::new(), Vec::new());
    loop {
        let mut piece = vec![0; 8 << 10];
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_SOCKETS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(
            stream,
            &mut [IoSliceMut::new(&mut piece)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        )?
        .bytes;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                handles.extend(rights);
            }
        }
        description.extend_from_slice(&piece[..received]);
        let length = description
            .get(..4)
            .and_then(|length| length.try_into().ok())
            .map(u32::from_be_bytes);
        match length.and_then(|length| usize::try_from(length).ok()) {
            Some(length) if length > MAX_DESCRIPTION_BYTES => {
                return Err(io::ErrorKind::InvalidData.into());
            }
            Some(length) if description.len() >= 4 + length => {
                return Ok((description[4..4 + length].to_vec(), handles));
            }
            _ if received == 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            _ => {}
        }
    }
}
