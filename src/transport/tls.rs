//! A rustls session without I/O: its user feeds it ciphertext, and takes plaintext and
//! ciphertext from it.
//!
//! It decides when ciphertext is decrypted. It does not know the socket, certificate files or
//! policies.
//!
//! rustls buffers at most about one record of plaintext (16 KiB) and refuses ciphertext beyond
//! that. Ciphertext that was read from the socket earlier is retained here until the plaintext
//! has been consumed.

use std::io::{self, BufRead, Read, Write};

use bytes::{Buf, BufMut, BytesMut};
use rustls::{Connection, pki_types::CertificateDer};

/// TLS session of one connection, as client or as server.
#[derive(Debug)]
pub(super) struct TlsSession {
    connection: Connection,
    /// Ciphertext that was read from the socket and that rustls has not accepted yet.
    unprocessed_records: BytesMut,
}

/// Result of an attempt to read plaintext.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TlsReadOutcome {
    /// Number of bytes of plaintext; 0 is the end of the stream.
    Plaintext(usize),
    /// No plaintext is available before more ciphertext is fed.
    NeedsInput,
}

impl TlsSession {
    pub(super) fn new(mut connection: Connection) -> Self {
        // The output queue, which its users bound, includes the output of this session. A
        // second limit could fail writes.
        connection.set_buffer_limit(None);
        Self {
            connection,
            unprocessed_records: BytesMut::new(),
        }
    }

    /// Returns `true` while the handshake is incomplete.
    pub(super) fn is_handshaking(&self) -> bool {
        self.connection.is_handshaking()
    }

    /// Returns the negotiated ALPN protocol, if any.
    pub(super) fn alpn_protocol(&self) -> Option<Vec<u8>> {
        self.connection.alpn_protocol().map(<[u8]>::to_vec)
    }

    /// Returns the leaf certificate of the peer, if it presented one.
    pub(super) fn peer_certificate(&self) -> Option<CertificateDer<'static>> {
        self.connection
            .peer_certificates()?
            .first()
            .map(|certificate| certificate.clone().into_owned())
    }

    /// Accepts ciphertext from the socket; an empty slice marks the end of the stream. Output
    /// for the peer is appended to `queue`.
    ///
    /// # Errors
    /// If the peer violates the protocol or is not trusted. The alert for the peer is then in
    /// `queue`.
    pub(super) fn feed(&mut self, bytes: &[u8], queue: &mut BytesMut) -> io::Result<()> {
        if bytes.is_empty() {
            self.connection.read_tls(&mut io::empty())?;
            return Ok(());
        }
        self.unprocessed_records.extend_from_slice(bytes);
        self.process_records(queue)
    }

    /// Returns how much plaintext can be read now, without consuming it. Decrypts retained
    /// ciphertext if needed.
    ///
    /// # Errors
    /// If the stream ended without `close_notify`, or as for [`TlsSession::feed`].
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

    /// Reads plaintext into `buffer` and returns the number of bytes.
    ///
    /// # Errors
    /// As for [`TlsSession::peek_plaintext`].
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

    /// Encrypts plaintext and appends the ciphertext to `queue`.
    pub(super) fn write_plaintext(&mut self, bytes: &[u8], queue: &mut BytesMut) -> io::Result<()> {
        self.connection.writer().write_all(bytes)?;
        self.flush(queue)
    }

    /// Appends a `close_notify` alert to `queue`. No plaintext can be written after it.
    pub(super) fn send_close_notify(&mut self, queue: &mut BytesMut) -> io::Result<()> {
        self.connection.send_close_notify();
        self.flush(queue)
    }

    /// Moves pending output of rustls to `queue`.
    pub(super) fn flush(&mut self, queue: &mut BytesMut) -> io::Result<()> {
        while self.connection.wants_write() {
            self.connection.write_tls(&mut queue.writer())?;
        }
        Ok(())
    }

    /// Processes retained ciphertext until plaintext is available or no complete record is
    /// left.
    fn process_records(&mut self, queue: &mut BytesMut) -> io::Result<()> {
        while !self.unprocessed_records.is_empty() && self.is_plaintext_drained() {
            if !self.process_available(queue)? {
                break;
            }
        }
        Ok(())
    }

    /// Returns `true` if no decrypted plaintext is waiting, so that rustls accepts further
    /// ciphertext.
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
        // An alert for the peer may be pending, also after an error.
        self.flush(queue)?;
        processed.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        Ok(self.unprocessed_records.len() < before)
    }
}
