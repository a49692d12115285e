//! State of this instance: its lifecycle, drain, load, sockets and replicas.
//!
//! The data plane, the control tasks and the admin server do not know each other. They exchange
//! information about the instance through these modules. The modules hold and publish state;
//! the tasks in [`crate::control`] act on it.

pub mod capacity;
pub mod command;
pub mod drain;
mod header_parameters;
pub mod instance_age;
pub mod lifecycle;
pub mod listener_sockets;
pub mod memory;
pub mod protection;
pub mod replicas;
