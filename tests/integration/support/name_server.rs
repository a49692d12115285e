//! A name server over UDP, whose records the test sets.

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

/// Running name server, stopped on drop.
pub(crate) struct NameServer {
    pub(crate) address: SocketAddr,
    zone: Arc<Mutex<HashMap<String, Vec<DnsRecord>>>>,
    behaviour: Arc<Mutex<DnsBehaviour>>,
    query_count: Arc<AtomicUsize>,
    is_stopped: Arc<AtomicBool>,
}

/// DNS record, with its TTL in seconds.
#[derive(Debug, Clone)]
pub(crate) enum DnsRecord {
    Address(u32, IpAddr),
    /// Priority, weight, port, target.
    Srv(u32, u16, u16, u16, &'static str),
}

/// Reaction of the server to a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DnsBehaviour {
    Responds,
    /// Responds to each query with SERVFAIL.
    ServerFailure,
    /// Responds SERVFAIL to AAAA, as some servers that support only A do.
    ServerFailureForAaaa,
    /// Responds NXDOMAIN to AAAA, as at the end of a search list.
    NxDomainForAaaa,
    /// Receives each query and sends no response.
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
            behaviour: Arc::new(Mutex::new(DnsBehaviour::Responds)),
            query_count: Arc::default(),
            is_stopped: Arc::default(),
        };
        let (zone, behaviour, query_count, is_stopped) = (
            server.zone.clone(),
            server.behaviour.clone(),
            server.query_count.clone(),
            server.is_stopped.clone(),
        );
        thread::spawn(move || {
            let mut packet = [0; 2048];
            while !is_stopped.load(Ordering::SeqCst) {
                let Ok((count, from)) = socket.recv_from(&mut packet) else {
                    continue;
                };
                query_count.fetch_add(1, Ordering::SeqCst);
                let behaviour = *behaviour.lock().unwrap();
                if behaviour != DnsBehaviour::Silent {
                    _ = socket.send_to(
                        &encode_response(&packet[..count], &zone.lock().unwrap(), behaviour),
                        from,
                    );
                }
            }
        });
        server
    }

    /// Sets the records of a name. A name without records does not exist.
    pub(crate) fn set_records(&self, name: &str, records: &[DnsRecord]) {
        self.zone
            .lock()
            .unwrap()
            .insert(name.to_owned(), records.to_vec());
    }

    pub(crate) fn set_behaviour(&self, behaviour: DnsBehaviour) {
        *self.behaviour.lock().unwrap() = behaviour;
    }

    /// Returns the number of queries so far.
    pub(crate) fn query_count(&self) -> usize {
        self.query_count.load(Ordering::SeqCst)
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.is_stopped.store(true, Ordering::SeqCst);
    }
}

fn encode_response(
    query: &[u8],
    zone: &HashMap<String, Vec<DnsRecord>>,
    behaviour: DnsBehaviour,
) -> Vec<u8> {
    let (mut offset, mut labels) = (12, Vec::new());
    while query[offset] != 0 {
        let length = usize::from(query[offset]);
        labels.push(String::from_utf8_lossy(&query[offset + 1..=offset + length]).to_lowercase());
        offset += length + 1;
    }
    let query_type = u16::from_be_bytes([query[offset + 1], query[offset + 2]]);
    let records = zone.get(&labels.join(".")).cloned().unwrap_or_default();
    let matching: Vec<(u32, Vec<u8>)> = records
        .iter()
        .filter_map(|record| encode_rdata(record, query_type))
        .collect();
    let response_code: u8 = match behaviour {
        DnsBehaviour::ServerFailure => 2,
        DnsBehaviour::ServerFailureForAaaa if query_type == 28 => 2,
        DnsBehaviour::NxDomainForAaaa if query_type == 28 => 3,
        _ if records.is_empty() => 3,
        _ => 0,
    };
    let count = if response_code == 0 {
        u16::try_from(matching.len()).unwrap()
    } else {
        0
    };
    let mut response = query[..2].to_vec();
    response.extend([0x81, 0x80 | response_code, 0, 1]);
    response.extend(count.to_be_bytes());
    response.extend([0; 4]);
    response.extend(&query[12..offset + 5]);
    for (ttl, data) in matching.iter().take(count.into()) {
        response.extend([0xc0, 12]);
        response.extend(query_type.to_be_bytes());
        response.extend([0, 1]);
        response.extend(ttl.to_be_bytes());
        response.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
        response.extend(data);
    }
    response
}

fn encode_rdata(record: &DnsRecord, query_type: u16) -> Option<(u32, Vec<u8>)> {
    match (record, query_type) {
        (DnsRecord::Address(ttl, IpAddr::V4(address)), 1) => {
            Some((*ttl, address.octets().to_vec()))
        }
        (DnsRecord::Address(ttl, IpAddr::V6(address)), 28) => {
            Some((*ttl, address.octets().to_vec()))
        }
        (DnsRecord::Srv(ttl, priority, weight, port, target), 33) => {
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
