//! A connected TCP or Unix socket, and its two halves.
//!
//! This module hides the difference between both kinds of socket. It does not know TLS or HTTP,
//! and it applies no timeout.

use std::{
    io,
    mem::MaybeUninit,
    os::fd::{AsRawFd, RawFd},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use pingora::protocols::l4::ext::get_tcp_info;
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, Interest, ReadBuf},
    net::{TcpStream, UnixStream, tcp, unix},
};

use crate::policy::snapshot::EndpointAddress;

/// A connected socket whose two directions have not been split.
#[derive(Debug)]
pub enum Socket {
    /// A connection over TCP.
    Tcp(TcpStream),
    /// A connection over a Unix socket.
    Unix(UnixStream),
}

/// Read half of a socket. It provides asynchronous reads.
#[derive(Debug)]
pub enum SocketReadHalf {
    /// A connection over TCP.
    Tcp(tcp::OwnedReadHalf),
    /// A connection over a Unix socket.
    Unix(unix::OwnedReadHalf),
}

/// Write half of a socket. It also provides operations on the socket as a whole, such as
/// readiness, reset and shutdown.
#[derive(Debug)]
pub enum SocketWriteHalf {
    /// A connection over TCP.
    Tcp(tcp::OwnedWriteHalf),
    /// A connection over a Unix socket.
    Unix(unix::OwnedWriteHalf),
}

impl Socket {
    /// Connects to an endpoint, and disables the Nagle algorithm on TCP connections.
    ///
    /// # Errors
    /// If the connection is refused, the endpoint is unreachable, or the system has no free
    /// descriptors.
    pub async fn connect(address: &EndpointAddress) -> io::Result<Self> {
        match address {
            EndpointAddress::Tcp(address) => {
                let tcp = TcpStream::connect(address).await?;
                // Messages are flushed when they are complete, so the Nagle algorithm would
                // only add delay.
                _ = tcp.set_nodelay(true);
                Ok(Self::Tcp(tcp))
            }
            EndpointAddress::Unix(path) => UnixStream::connect(&**path).await.map(Self::Unix),
        }
    }

    /// Splits the socket into halves that can be used at the same time.
    #[must_use]
    pub fn split(self) -> (SocketReadHalf, SocketWriteHalf) {
        match self {
            Self::Tcp(tcp) => {
                let (reader, writer) = tcp.into_split();
                (SocketReadHalf::Tcp(reader), SocketWriteHalf::Tcp(writer))
            }
            Self::Unix(unix) => {
                let (reader, writer) = unix.into_split();
                (SocketReadHalf::Unix(reader), SocketWriteHalf::Unix(writer))
            }
        }
    }
}

impl AsyncRead for SocketReadHalf {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(reader) => Pin::new(reader).poll_read(context, buffer),
            Self::Unix(reader) => Pin::new(reader).poll_read(context, buffer),
        }
    }
}

impl SocketWriteHalf {
    /// Writes as many bytes as the socket accepts at once, and returns their number.
    ///
    /// # Errors
    /// `WouldBlock` if the socket accepts nothing now, or another kind if the connection is
    /// broken.
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(writer) => writer.try_write(bytes),
            Self::Unix(writer) => writer.try_write(bytes),
        }
    }

    /// Waits until the socket may accept more bytes.
    ///
    /// # Errors
    /// If the connection is broken.
    pub fn poll_write_ready(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(writer) => writer.as_ref().poll_write_ready(context),
            Self::Unix(writer) => writer.as_ref().poll_write_ready(context),
        }
    }

    /// Waits until the socket is readable or the peer has closed the connection.
    ///
    /// # Errors
    /// If the connection is broken.
    pub async fn readable(&self) -> io::Result<()> {
        match self {
            Self::Tcp(writer) => writer.as_ref().ready(Interest::READABLE).await.map(drop),
            Self::Unix(writer) => writer.as_ref().ready(Interest::READABLE).await.map(drop),
        }
    }

    /// Waits until bytes have arrived or the peer has closed the connection, and leaves the bytes
    /// in the kernel.
    ///
    /// It queries the kernel, because a new socket can be reported as readable without bytes.
    ///
    /// # Errors
    /// If the connection is broken.
    pub async fn bytes_arrived(&self) -> io::Result<()> {
        loop {
            self.readable().await?;
            let mut probe = [MaybeUninit::uninit(); 1];
            let peek = || self.sock_ref().peek(&mut probe);
            // `try_io` waits for the next event of the kernel after `WouldBlock`.
            let peeked = match self {
                Self::Tcp(writer) => writer.as_ref().try_io(Interest::READABLE, peek),
                Self::Unix(writer) => writer.as_ref().try_io(Interest::READABLE, peek),
            };
            match peeked {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                peeked => return peeked.map(drop),
            }
        }
    }

    /// Reads available bytes, and returns their number; 0 is the end of the stream.
    ///
    /// # Errors
    /// `WouldBlock` if nothing is available, or another kind if the connection is broken.
    pub fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(writer) => writer.as_ref().try_read(buffer),
            Self::Unix(writer) => writer.as_ref().try_read(buffer),
        }
    }

    /// Returns `true` if the connection is open and nothing waits to be read.
    ///
    /// It queries the kernel, because the readiness that tokio has cached can be outdated.
    #[must_use]
    pub fn is_open_without_input(&self) -> bool {
        let mut probe = [MaybeUninit::uninit(); 1];
        self.sock_ref()
            .peek(&mut probe)
            .is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Reads bytes that the kernel has available, without the readiness that tokio has cached.
    ///
    /// # Errors
    /// `WouldBlock` if nothing is available, or another kind if the connection is broken.
    pub fn try_read_from_os(&self, buffer: &mut [u8]) -> io::Result<usize> {
        io::Read::read(&mut &*self.sock_ref(), buffer)
    }

    /// Returns the bytes that the peer has acknowledged and the bytes received from it, as the
    /// kernel counts them (`TCP_INFO`).
    ///
    /// SYN and FIN count as one byte each. Returns `None` for Unix sockets, and on systems
    /// without these counters.
    #[must_use]
    pub fn tcp_byte_counts(&self) -> Option<(u64, u64)> {
        let Self::Tcp(writer) = self else { return None };
        let info = get_tcp_info(writer.as_ref().as_raw_fd()).ok()?;
        // A kernel without these fields leaves them at zero, although bytes were sent.
        (info.tcpi_bytes_acked > 0).then_some((info.tcpi_bytes_acked, info.tcpi_bytes_received))
    }

    /// Makes the close of the socket a TCP reset. If that fails, the close is a regular one.
    pub fn reset_on_close(&self) {
        _ = self.sock_ref().set_linger(Some(Duration::ZERO));
    }

    /// Closes the write direction; the peer reads the end of the stream after all bytes.
    ///
    /// # Errors
    /// If the connection is broken.
    pub fn shutdown_write(&self) -> io::Result<()> {
        self.sock_ref().shutdown(std::net::Shutdown::Write)
    }

    /// Closes both directions at once. Waiting reads and writes of the socket then end.
    pub fn shut_down(&self) {
        // A broken connection is closed already.
        _ = self.sock_ref().shutdown(std::net::Shutdown::Both);
    }

    fn sock_ref(&self) -> SockRef<'_> {
        match self {
            Self::Tcp(writer) => SockRef::from(writer.as_ref()),
            Self::Unix(writer) => SockRef::from(writer.as_ref()),
        }
    }
}

impl AsRawFd for SocketWriteHalf {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Self::Tcp(writer) => writer.as_ref().as_raw_fd(),
            Self::Unix(writer) => writer.as_ref().as_raw_fd(),
        }
    }
}
