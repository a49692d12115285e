//! A session of rustls, fed with what the socket gives and asked for what it is to take.
//!
//! rustls keeps at most one record of plaintext at a time, so that what was read from the socket beyond it waits here.

use std::io::{self, BufRead, Read, Write};

use bytes::{Buf, BufMut, BytesMut};
use rustls::{Connection, pki_types::CertificateDer};

/// One side's session.
#[derive(Debug)]
pub(super) struct TlsSession {
    connection: Connection,
    /// What was read from the socket and not taken in yet.
    unprocessed_records: BytesMut,
}

/// What a session has to offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TlsReadOutcome {
    /// So many bytes of plaintext; none is the end of the stream.
    Plaintext(usize),
    /// Nothing, until more is read from the socket.
    NeedsInput,
}

impl TlsSession {
    pub(super) fn new(mut connection: Connection) -> Self {
        // The queue of the wire is bounded by its users, and this is a part of it.
        connection.set_buffer_limit(None);
        Self {
            connection,
            unprocessed_records: BytesMut::new(),
        }
    }

    /// Whether the two sides have not agreed yet.
    pub(super) fn is_handshaking(&self) -> bool {
        self.connection.is_handshaking()
    }

    /// The protocol that the two sides agreed on.
    pub(super) fn alpn_protocol(&self) -> Option<Vec<u8>> {
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
        self.unprocessed_records.extend_from_slice(bytes);
        self.process_records(queue)
    }

    /// What can be read now; it stays where it is.
    ///
    /// # Errors
    /// If the stream ended without saying so, or as for [`Session::feed`].
    pub(super) fn peek_plaintext(&mut self, queue: &mut BytesMut) -> io::Result<TlsReadOutcome> {
        loop {
            match self.connection.reader().fill_buf() {
                Ok(bytes) => return Ok(TlsReadOutcome::Plaintext(bytes.len())),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            if self.unprocessed_records.is_empty() || !self.process_available(queue)? {
                return Ok(TlsReadOutcome::NeedsInput);
            }
        }
    }

    /// Reads plaintext.
    ///
    /// # Errors
    /// As for [`Session::peek`].
    pub(super) fn read_plaintext(
        &mut self,
        buffer: &mut [u8],
        queue: &mut BytesMut,
    ) -> io::Result<TlsReadOutcome> {
        match self.peek_plaintext(queue)? {
            TlsReadOutcome::Plaintext(1..) => self
                .connection
                .reader()
                .read(buffer)
                .map(TlsReadOutcome::Plaintext),
            other => Ok(other),
        }
    }

    /// Writes plaintext; what is to be sent for it goes to `queue`.
    pub(super) fn write_plaintext(&mut self, bytes: &[u8], queue: &mut BytesMut) -> io::Result<()> {
        self.connection.writer().write_all(bytes)?;
        self.flush(queue)
    }

    /// Says that nothing more will be written.
    pub(super) fn send_close_notify(&mut self, queue: &mut BytesMut) -> io::Result<()> {
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
    fn process_records(&mut self, queue: &mut BytesMut) -> io::Result<()> {
        while !self.unprocessed_records.is_empty() && self.is_plaintext_drained() {
            if !self.process_available(queue)? {
                break;
            }
        }
        Ok(())
    }

    /// Whether all plaintext has been read, so that more may be made.
    fn is_plaintext_drained(&mut self) -> bool {
        self.connection
            .reader()
            .fill_buf()
            .is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    fn process_available(&mut self, queue: &mut BytesMut) -> io::Result<bool> {
        let before = self.unprocessed_records.len();
        self.connection
            .read_tls(&mut (&mut self.unprocessed_records).reader())?;
        let processed = self.connection.process_new_packets();
        // An alert for the other side may be waiting, whatever happened.
        self.flush(queue)?;
        processed.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        Ok(self.unprocessed_records.len() < before)
    }
}
