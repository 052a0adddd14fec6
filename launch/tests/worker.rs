//! Whole runs with real processes on the sample corpus: the number of workers, deaths and requests
//! to stop change no bit, and what cannot be right is refused. The runs share one folder of
//! imported corpora and take place one after the other.

#[path = "worker/bits.rs"]
mod bits;
#[path = "worker/chance.rs"]
mod chance;
#[path = "worker/chaos.rs"]
mod chaos;
#[path = "worker/client.rs"]
mod client;
#[path = "worker/cluster.rs"]
mod cluster;
#[path = "worker/corruption.rs"]
mod corruption;
#[path = "worker/dialogues.rs"]
mod dialogues;
#[path = "worker/evaluating.rs"]
mod evaluating;
#[path = "worker/exporting.rs"]
mod exporting;
#[path = "worker/gates.rs"]
mod gates;
#[path = "worker/generating.rs"]
mod generating;
#[path = "worker/goodput.rs"]
mod goodput;
#[path = "worker/hangs.rs"]
mod hangs;
#[path = "worker/interruptions.rs"]
mod interruptions;
#[path = "worker/joining.rs"]
mod joining;
#[path = "worker/lab.rs"]
mod lab;
#[path = "worker/ledger.rs"]
mod ledger;
#[path = "worker/memories.rs"]
mod memories;
#[path = "worker/namespaces.rs"]
mod namespaces;
#[path = "worker/network.rs"]
mod network;
#[path = "worker/object_stores.rs"]
mod object_stores;
#[path = "worker/oddities.rs"]
mod oddities;
#[path = "worker/outputs.rs"]
mod outputs;
#[path = "worker/patience.rs"]
mod patience;
#[path = "../src/chaos/ports.rs"]
mod ports;
#[path = "../src/chaos/proxy.rs"]
mod proxy;
#[path = "worker/published.rs"]
mod published;
#[path = "worker/recovery.rs"]
mod recovery;
#[path = "worker/refusals.rs"]
mod refusals;
#[path = "worker/servers.rs"]
mod servers;
#[path = "worker/serving.rs"]
mod serving;
#[path = "support/signals.rs"]
mod signals;
#[path = "worker/strangers.rs"]
mod strangers;
#[path = "worker/succession.rs"]
mod succession;
