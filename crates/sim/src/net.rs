//! The network between sources (one per site) and their receiver, as QUIC shows it.
//!
//! 1. A connection has one control stream each way: ordered, complete while the connection lives.
//! 2. Every part travels on a stream of its own; streams arrive in any order, and a stream only as a whole or not at all
//!    (an incomplete one is dropped by the receiver).
//! 3. A reset ends the connection: of what was in flight any prefix of control and any set of streams still arrives, at any
//!    later time, also after the next connection began (it waited in the dead one's queue). The other side learns late.
//! 4. A partition is a time in which nothing arrives and no connection begins.
//! 5. A duplicate is a stream or a message of a dead connection that arrives after its content was sent again on a new one;
//!    inside one connection QUIC delivers once.

use crate::rng::Rng;

/// Numbers connections, ascending over a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(pub u64);

/// Where a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum To {
    /// To the source.
    Source,
    /// To the receiver.
    Receiver,
}

/// What travels.
#[derive(Clone, Debug)]
pub enum Load {
    /// A control frame, encoded.
    Control(Vec<u8>),
    /// A part's stream, header included.
    Part(Vec<u8>),
    /// The end of the connection, as the other side notices it.
    Closed,
    /// The same, with the last word of a source that all of it is published.
    Settled,
}

/// Something on its way.
#[derive(Clone, Debug)]
pub struct Message {
    /// Towards whom.
    pub to: To,
    /// On which connection.
    pub conn: ConnId,
    /// What.
    pub load: Load,
}

/// See the head of the file.
#[derive(Debug, Default)]
pub struct Network {
    flight: Vec<Message>,
    /// The connection that lives, and whose it is.
    alive: Vec<(usize, ConnId)>,
    /// Whose each connection is, or was.
    owners: Vec<usize>,
    last: u64,
    /// Whether anything gets through.
    pub up: bool,
}

impl Network {
    /// One that works, without a connection.
    pub fn new() -> Self {
        Self { up: true, ..Self::default() }
    }

    /// Opens a connection of a site, ending the one that it had.
    pub fn connect(&mut self, site: usize, rng: &mut Rng) -> Option<ConnId> {
        if !self.up {
            return None;
        }
        if let Some(old) = self.alive(site) {
            self.reset(old, rng);
        }
        self.last += 1;
        let conn = ConnId(self.last);
        self.alive.push((site, conn));
        self.owners.push(site);
        Some(conn)
    }

    /// The connection of a site that lives.
    pub fn alive(&self, site: usize) -> Option<ConnId> {
        self.alive.iter().find(|(s, _)| *s == site).map(|(_, conn)| *conn)
    }

    /// Whose a connection is, or was.
    pub fn site_of(&self, conn: ConnId) -> usize {
        self.owners[conn.0 as usize - 1]
    }

    /// All connections that live.
    pub fn all_alive(&self) -> Vec<ConnId> {
        self.alive.iter().map(|(_, conn)| *conn).collect()
    }

    fn lives(&self, conn: ConnId) -> bool {
        self.alive.iter().any(|(_, c)| *c == conn)
    }

    /// Sends; into a dead connection it is lost without a word.
    pub fn send(&mut self, to: To, conn: ConnId, load: Load) {
        if self.lives(conn) {
            self.flight.push(Message { to, conn, load });
        }
    }

    /// One side closes a connection in order: what it sent before still arrives, nothing after.
    pub fn hang_up(&mut self, conn: ConnId) {
        self.alive.retain(|(_, c)| *c != conn);
    }

    /// Ends a connection. What chance keeps of it may still arrive.
    pub fn reset(&mut self, conn: ConnId, rng: &mut Rng) {
        self.alive.retain(|(_, c)| *c != conn);
        // Control survives as a prefix: after the first lost message of a direction, all later ones are lost.
        let keep = if rng.chance(0.3) { 0.0 } else { rng.unit() };
        let mut cut = [false; 2];
        let flight = std::mem::take(&mut self.flight);
        for message in flight {
            let side = usize::from(message.to == To::Source);
            let kept = message.conn != conn
                || match message.load {
                    // The source's process tells its tasks at once: nothing of a dead connection reaches its core.
                    _ if message.to == To::Source => false,
                    Load::Control(_) | Load::Closed | Load::Settled => {
                        cut[side] |= !rng.chance(keep);
                        !cut[side]
                    }
                    Load::Part(_) => rng.chance(keep),
                };
            if kept {
                self.flight.push(message);
            }
        }
        // The receiver learns of it behind whatever it still gets.
        self.flight.push(Message { to: To::Receiver, conn, load: Load::Closed });
    }

    /// No receiver is left to take what was sent to it.
    pub fn forget_receiver(&mut self) {
        self.flight.retain(|m| m.to != To::Receiver);
    }

    /// Whether something could arrive now.
    pub fn pending(&self) -> usize {
        if self.up { self.flight.len() } else { 0 }
    }

    /// One message that may arrive next: control in order per connection and direction, streams in any order.
    pub fn arrive(&mut self, rng: &mut Rng) -> Option<Message> {
        if !self.up || self.flight.is_empty() {
            return None;
        }
        let ready: Vec<usize> = (0..self.flight.len())
            .filter(|&i| {
                let m = &self.flight[i];
                matches!(m.load, Load::Part(_))
                    || !self.flight[..i].iter().any(|p| p.to == m.to && p.conn == m.conn && !matches!(p.load, Load::Part(_)))
            })
            .collect();
        Some(self.flight.remove(rng.pick(&ready)))
    }

    /// Messages on their way, for limits.
    pub fn in_flight(&self) -> &[Message] {
        &self.flight
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_keeps_its_order_streams_do_not_and_a_reset_loses_a_suffix() {
        let (mut overtook, mut lost, mut late) = (false, false, false);
        for seed in 0..200 {
            let mut r = Rng::new(seed);
            let mut n = Network::new();
            let c = n.connect(0, &mut r).expect("up");
            for i in 0..4 {
                n.send(To::Receiver, c, Load::Control(vec![i]));
                n.send(To::Receiver, c, Load::Part(vec![i]));
            }
            if seed % 2 == 0 {
                n.reset(c, &mut r);
                n.send(To::Receiver, c, Load::Control(vec![9]));
                n.connect(0, &mut r);
            }
            let (mut control, mut parts) = (Vec::new(), Vec::new());
            while let Some(m) = n.arrive(&mut r) {
                late |= n.alive(0) != Some(m.conn);
                match m.load {
                    Load::Control(b) => control.push(b[0]),
                    Load::Part(b) => parts.push(b[0]),
                    Load::Closed | Load::Settled => {}
                }
            }
            assert_eq!(control, (0..control.len() as u8).collect::<Vec<_>>(), "a prefix in order");
            overtook |= parts.windows(2).any(|w| w[0] > w[1]);
            lost |= control.len() < 4;
        }
        assert!(overtook && lost && late);
    }
}
