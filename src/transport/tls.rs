//! A session of rustls, fed with what the socket gives and asked for what it is to take.
//!
//! rustls keeps at most one record of plaintext at a time, so that what was read from the socket beyond it waits here.

use std::io::{self, BufRead, Read, Write};

use bytes::{Buf, BufMut, BytesMut};
use rustls::{Connection, pki_types::CertificateDer};

/// One side's session.
#[derive(Debug)]
pub(super) struct Session {
    connection: Connection,
    /// What was read from the socket and not taken in yet.
    unread: BytesMut,
}

/// What a session has to offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Offer {
    /// So many bytes of plaintext; none is the end of the stream.
    Bytes(usize),
    /// Nothing, until more is read from the socket.
    Nothing,
}

impl Session {
    pub(super) fn new(mut connection: Connection) -> Self {
        // The queue of the wire is bounded by its users, and this is a part of it.
        connection.set_buffer_limit(None);
        Self {
            connection,
            unread: BytesMut::new(),
        }
    }

    /// Whether the two sides have not agreed yet.
    pub(super) fn is_handshaking(&self) -> bool {
        self.connection.is_handshaking()
    }

    /// The protocol that the two sides agreed on.
    pub(super) fn protocol(&self) -> Option<Vec<u8>> {
        self.connection.alpn_protocol().map(<[u8]>::to_vec)
    }

    /// The certificate of the other side.
    pub(super) fn peer_certificate(&self) -> Option<CertificateDer<'static>> {
        self.connection
            .peer_certificates()?
            .first()
            .map(|certificate| certificate.clone().into_owned())
    }

    /// Takes in what was read from the socket; nothing is its end. What is to be said to that goes to `queue`.
    ///
    /// # Errors
    /// If the other side breaks the protocol or is not trusted; an alert is in the queue then.
    pub(super) fn feed(&mut self, bytes: &[u8], queue: &mut BytesMut) -> io::Result<()> {
        if bytes.is_empty() {
            self.connection.read_tls(&mut io::empty())?;
            return Ok(());
        }
        self.unread.extend_from_slice(bytes);
        self.digest(queue)
    }

    /// What can be read now; it stays where it is.
    ///
    /// # Errors
    /// If the stream ended without saying so, or as for [`Session::feed`].
    pub(super) fn peek(&mut self, queue: &mut BytesMut) -> io::Result<Offer> {
        loop {
            match self.connection.reader().fill_buf() {
                Ok(bytes) => return Ok(Offer::Bytes(bytes.len())),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            if self.unread.is_empty() || !self.digest_some(queue)? {
                return Ok(Offer::Nothing);
            }
        }
    }

    /// Reads plaintext.
    ///
    /// # Errors
    /// As for [`Session::peek`].
    pub(super) fn read(&mut self, buffer: &mut [u8], queue: &mut BytesMut) -> io::Result<Offer> {
        match self.peek(queue)? {
            Offer::Bytes(1..) => self.connection.reader().read(buffer).map(Offer::Bytes),
            other => Ok(other),
        }
    }

    /// Writes plaintext; what is to be sent for it goes to `queue`.
    pub(super) fn write(&mut self, bytes: &[u8], queue: &mut BytesMut) -> io::Result<()> {
        self.connection.writer().write_all(bytes)?;
        self.flush(queue)
    }

    /// Says that nothing more will be written.
    pub(super) fn close(&mut self, queue: &mut BytesMut) -> io::Result<()> {
        self.connection.send_close_notify();
        self.flush(queue)
    }

    /// Moves what is to be sent to `queue`.
    pub(super) fn flush(&mut self, queue: &mut BytesMut) -> io::Result<()> {
        while self.connection.wants_write() {
            self.connection.write_tls(&mut queue.writer())?;
        }
        Ok(())
    }

    /// Takes in records until there is plaintext or no whole record is left.
    fn digest(&mut self, queue: &mut BytesMut) -> io::Result<()> {
        while !self.unread.is_empty() && self.is_hungry() {
            if !self.digest_some(queue)? {
                break;
            }
        }
        Ok(())
    }

    /// Whether all plaintext has been read, so that more may be made.
    fn is_hungry(&mut self) -> bool {
        self.connection
            .reader()
            .fill_buf()
            .is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    fn digest_some(&mut self, queue: &mut BytesMut) -> io::Result<bool> {
        let before = self.unread.len();
        self.connection.read_tls(&mut (&mut self.unread).reader())?;
        let processed = self.connection.process_new_packets();
        // An alert for the other side may be waiting, whatever happened.
        self.flush(queue)?;
        processed.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        Ok(self.unread.len() < before)
    }
}
