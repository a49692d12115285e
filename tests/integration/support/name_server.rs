//! A name server that says what it is told, over UDP.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

/// A running name server.
pub(crate) struct NameServer {
    pub(crate) address: SocketAddr,
    zone: Arc<Mutex<HashMap<String, Vec<Record>>>>,
    behaviour: Arc<Mutex<Behaviour>>,
    asked: Arc<AtomicUsize>,
    is_over: Arc<AtomicBool>,
}

/// A record, with its TTL in seconds.
#[derive(Debug, Clone)]
pub(crate) enum Record {
    Address(u32, IpAddr),
    /// Priority, weight, port, target.
    Service(u32, u16, u16, u16, &'static str),
}

/// What the server does with a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Behaviour {
    Answers,
    /// SERVFAIL.
    Fails,
    /// SERVFAIL for AAAA, as some do that know only A.
    FailsForIpv6,
    /// Says for AAAA that there is no such name, as at the end of a search list.
    DeniesIpv6,
    /// Nothing.
    Silent,
}

impl NameServer {
    pub(crate) fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(50)))
            .unwrap();
        let server = Self {
            address: socket.local_addr().unwrap(),
            zone: Arc::default(),
            behaviour: Arc::new(Mutex::new(Behaviour::Answers)),
            asked: Arc::default(),
            is_over: Arc::default(),
        };
        let (zone, behaviour, asked, is_over) = (
            server.zone.clone(),
            server.behaviour.clone(),
            server.asked.clone(),
            server.is_over.clone(),
        );
        thread::spawn(move || {
            let mut packet = [0; 2048];
            while !is_over.load(Ordering::SeqCst) {
                let Ok((count, from)) = socket.recv_from(&mut packet) else {
                    continue;
                };
                asked.fetch_add(1, Ordering::SeqCst);
                let behaviour = *behaviour.lock().unwrap();
                if behaviour != Behaviour::Silent {
                    _ = socket.send_to(
                        &answer(&packet[..count], &zone.lock().unwrap(), behaviour),
                        from,
                    );
                }
            }
        });
        server
    }

    /// Says from now on that a name has these records; none is a name that does not exist.
    pub(crate) fn set(&self, name: &str, records: &[Record]) {
        self.zone
            .lock()
            .unwrap()
            .insert(name.to_owned(), records.to_vec());
    }

    pub(crate) fn behave(&self, behaviour: Behaviour) {
        *self.behaviour.lock().unwrap() = behaviour;
    }

    /// Questions so far.
    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
    }
}

fn answer(question: &[u8], zone: &HashMap<String, Vec<Record>>, behaviour: Behaviour) -> Vec<u8> {
    let (mut at, mut labels) = (12, Vec::new());
    while question[at] != 0 {
        let length = usize::from(question[at]);
        labels.push(String::from_utf8_lossy(&question[at + 1..=at + length]).to_lowercase());
        at += length + 1;
    }
    let kind = u16::from_be_bytes([question[at + 1], question[at + 2]]);
    let records = zone.get(&labels.join(".")).cloned().unwrap_or_default();
    let fitting: Vec<(u32, Vec<u8>)> = records
        .iter()
        .filter_map(|record| data(record, kind))
        .collect();
    let code: u8 = match behaviour {
        Behaviour::Fails => 2,
        Behaviour::FailsForIpv6 if kind == 28 => 2,
        Behaviour::DeniesIpv6 if kind == 28 => 3,
        _ if records.is_empty() => 3,
        _ => 0,
    };
    let count = if code == 0 {
        u16::try_from(fitting.len()).unwrap()
    } else {
        0
    };
    let mut reply = question[..2].to_vec();
    reply.extend([0x81, 0x80 | code, 0, 1]);
    reply.extend(count.to_be_bytes());
    reply.extend([0; 4]);
    reply.extend(&question[12..at + 5]);
    for (ttl, data) in fitting.iter().take(count.into()) {
        reply.extend([0xc0, 12]);
        reply.extend(kind.to_be_bytes());
        reply.extend([0, 1]);
        reply.extend(ttl.to_be_bytes());
        reply.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
        reply.extend(data);
    }
    reply
}

fn data(record: &Record, kind: u16) -> Option<(u32, Vec<u8>)> {
    match (record, kind) {
        (Record::Address(ttl, IpAddr::V4(address)), 1) => Some((*ttl, address.octets().to_vec())),
        (Record::Address(ttl, IpAddr::V6(address)), 28) => Some((*ttl, address.octets().to_vec())),
        (Record::Service(ttl, priority, weight, port, target), 33) => {
            let mut data: Vec<u8> = [priority, weight, port]
                .into_iter()
                .flat_map(|number| number.to_be_bytes())
                .collect();
            for label in target.trim_end_matches('.').split('.') {
                data.push(u8::try_from(label.len()).unwrap());
                data.extend(label.as_bytes());
            }
            data.push(0);
            Some((*ttl, data))
        }
        _ => None,
    }
}
