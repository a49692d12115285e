//! The state of this instance: its lifecycle, its drain, its load and its replicas.

pub mod capacity;
pub mod command;
pub mod drain;
pub mod instance_age;
pub mod lifecycle;
pub mod listener_sockets;
pub mod protection;
pub mod replicas;
