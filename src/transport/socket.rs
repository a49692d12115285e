//! A connected socket, over TCP or in the file system.

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

/// A connected socket.
#[derive(Debug)]
pub enum Socket {
    /// Over TCP.
    Tcp(TcpStream),
    /// In the file system.
    Unix(UnixStream),
}

/// The half that reads.
#[derive(Debug)]
pub enum SocketReadHalf {
    /// Over TCP.
    Tcp(tcp::OwnedReadHalf),
    /// In the file system.
    Unix(unix::OwnedReadHalf),
}

/// The half that writes.
#[derive(Debug)]
pub enum SocketWriteHalf {
    /// Over TCP.
    Tcp(tcp::OwnedWriteHalf),
    /// In the file system.
    Unix(unix::OwnedWriteHalf),
}

impl Socket {
    /// Connects to an endpoint.
    ///
    /// # Errors
    /// If it is refused or unreachable, or the system gives no socket.
    pub async fn connect(address: &EndpointAddress) -> io::Result<Self> {
        match address {
            EndpointAddress::Tcp(address) => {
                let tcp = TcpStream::connect(address).await?;
                // Requests are pushed when they are complete; waiting for more would only delay them.
                _ = tcp.set_nodelay(true);
                Ok(Self::Tcp(tcp))
            }
            EndpointAddress::Unix(path) => UnixStream::connect(&**path).await.map(Self::Unix),
        }
    }

    /// Takes it apart.
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
    /// Writes what the socket takes at once.
    ///
    /// # Errors
    /// If it takes nothing (`WouldBlock`), or is broken.
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(writer) => writer.try_write(bytes),
            Self::Unix(writer) => writer.try_write(bytes),
        }
    }

    /// Waits until the socket takes more.
    pub fn poll_write_ready(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(writer) => writer.as_ref().poll_write_ready(context),
            Self::Unix(writer) => writer.as_ref().poll_write_ready(context),
        }
    }

    /// Waits until something can be read, or the other side has closed.
    ///
    /// # Errors
    /// If the socket is broken.
    pub async fn readable(&self) -> io::Result<()> {
        match self {
            Self::Tcp(writer) => writer.as_ref().ready(Interest::READABLE).await.map(drop),
            Self::Unix(writer) => writer.as_ref().ready(Interest::READABLE).await.map(drop),
        }
    }

    /// Reads what is there.
    ///
    /// # Errors
    /// If there is nothing (`WouldBlock`), or the socket is broken.
    pub fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(writer) => writer.as_ref().try_read(buffer),
            Self::Unix(writer) => writer.as_ref().try_read(buffer),
        }
    }

    /// Asks the system, not the runtime's memory of it, whether the socket is open and nothing waits to be read.
    #[must_use]
    pub fn is_open_without_input(&self) -> bool {
        let mut probe = [MaybeUninit::uninit(); 1];
        self.sock_ref()
            .peek(&mut probe)
            .is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Reads what the system has, whatever the runtime remembers.
    ///
    /// # Errors
    /// If there is nothing (`WouldBlock`), or the socket is broken.
    pub fn try_read_from_os(&self, buffer: &mut [u8]) -> io::Result<usize> {
        io::Read::read(&mut &*self.sock_ref(), buffer)
    }

    /// How many bytes the other side has acknowledged, and how many have come from it, as the system counts them: with one for the opening
    /// and the closing of the connection. Only of TCP, and only where the system tells.
    #[must_use]
    pub fn tcp_byte_counts(&self) -> Option<(u64, u64)> {
        let Self::Tcp(writer) = self else { return None };
        let info = get_tcp_info(writer.as_ref().as_raw_fd()).ok()?;
        // A system that does not know these fields leaves them at zero, although something was sent.
        (info.tcpi_bytes_acked > 0).then_some((info.tcpi_bytes_acked, info.tcpi_bytes_received))
    }

    /// Makes the close a reset. If it cannot be, the close is a close.
    pub fn reset_on_close(&self) {
        _ = self.sock_ref().set_linger(Some(Duration::ZERO));
    }

    /// Says that nothing more will be written.
    ///
    /// # Errors
    /// If the socket is broken.
    pub fn shutdown_write(&self) -> io::Result<()> {
        self.sock_ref().shutdown(std::net::Shutdown::Write)
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
