//! torchft's lighthouse: a heartbeat is a call of its own, with an empty answer.

use std::{net::TcpListener, path::PathBuf, time::Duration};

use anyhow::Context;
use serde_json::json;
use tonic::{
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

use crate::{Crowd, server::Server};

const HEARTBEAT: PathAndQuery = PathAndQuery::from_static("/torchft.LighthouseService/Heartbeat");
/// How long it may take to listen.
const START: Duration = Duration::from_secs(30);

/// A heartbeat as it goes over the wire.
#[derive(Clone, PartialEq, prost::Message)]
struct Beat {
    #[prost(string, tag = "1")]
    replica_id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Heard {}

pub(crate) async fn measure(
    crowd: Crowd,
    program: &[PathBuf],
) -> anyhow::Result<serde_json::Value> {
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let mut words: Vec<_> = program
        .iter()
        .map(|word| word.clone().into_os_string())
        .collect();
    words.extend(["--bind".into(), format!("127.0.0.1:{port}").into()]);
    words.extend(["--min_replicas".into(), "1".into()]);
    let server = Server::start(&words, &[])?;
    let mut channels = Vec::new();
    for members in crowd.hosts() {
        channels.push((connect(port).await?, members));
    }
    // Everybody is known to it before anything is measured.
    race(&channels, 1).await?;
    let since = server.now()?;
    race(&channels, crowd.beats).await?;
    let used = server.used(since)?;
    let beats = crowd.beats as f64 * crowd.members as f64;
    Ok(json!({
        "members": crowd.members,
        "connections": channels.len(),
        "beats_per_second": beats / used.wall.as_secs_f64(),
        "race_share": used.share(),
        "beat_cpu_seconds": used.cpu_seconds / beats,
        "peak_mib": server.peak_mib()?,
    }))
}

async fn connect(port: u16) -> anyhow::Result<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{port}"))?.tcp_nodelay(true);
    let connect = async {
        loop {
            match endpoint.connect().await {
                Ok(channel) => return channel,
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    };
    let channel = tokio::time::timeout(START, connect).await;
    channel.context("the lighthouse does not listen")
}

/// Each member beats so many times, one after the other; all of them at once.
async fn race(channels: &[(Channel, Vec<usize>)], beats: u64) -> anyhow::Result<()> {
    let mut tasks = tokio::task::JoinSet::new();
    for (channel, members) in channels {
        for member in members {
            tasks.spawn(beat(channel.clone(), *member, beats));
        }
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(())
}

async fn beat(channel: Channel, member: usize, beats: u64) -> anyhow::Result<()> {
    let mut grpc = Grpc::new(channel);
    for _ in 0..beats {
        grpc.ready().await?;
        let request = tonic::Request::new(Beat {
            replica_id: format!("worker-{member}"),
        });
        let codec = ProstCodec::<Beat, Heard>::default();
        grpc.unary(request, HEARTBEAT, codec).await?;
    }
    Ok(())
}
