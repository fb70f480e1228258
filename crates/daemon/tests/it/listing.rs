//! Lists that are passed on as they are stored are those that are taken apart.

use gantry_api::containerd::services::containers::v1::containers_client::ContainersClient;
use gantry_api::containerd::services::containers::v1::{
    Container, CreateContainerRequest, GetContainerRequest, ListContainersRequest, container,
};
use prost_types::Any;

use crate::harness::{Harness, in_ns, ns};

fn any(text: &str) -> Any {
    Any { type_url: text.into(), value: vec![0xff, 0, 1] }
}

/// Containers with every field, with none that may be left out, and one longer than a piece of
/// the answer.
fn containers() -> [Container; 3] {
    let runtime = |options| container::Runtime { name: "io.containerd.runc.v2".into(), options };
    let least = Container { id: "least".into(), spec: Some(any("spec")), ..Default::default() };
    let least = Container { runtime: Some(runtime(None)), ..least };
    let full = Container {
        id: "full".into(),
        labels: [("a".into(), "b".into()), ("c".into(), String::new())].into(),
        image: "example.com/image:1".into(),
        runtime: Some(runtime(Some(any("options")))),
        spec: Some(any("spec")),
        snapshotter: "overlayfs".into(),
        snapshot_key: "full".into(),
        extensions: [("e".into(), any("extension")), ("f".into(), Any::default())].into(),
        sandbox: "sandbox".into(),
        ..Default::default()
    };
    let value = vec![7; 100_000];
    let spec = Some(Any { type_url: "spec".into(), value });
    let long = Container { id: "long".into(), spec, ..least.clone() };
    [full, least, long]
}

#[tokio::test(flavor = "multi_thread")]
async fn with_and_without_a_filter() {
    let daemon = Harness::start().await;
    let mut client = ContainersClient::new(daemon.channel());
    let mut made = Vec::new();
    for container in containers() {
        let id = container.id.clone();
        let request = CreateContainerRequest { container: Some(container) };
        client.create(ns(request.clone())).await.unwrap();
        client.create(in_ns("other", request)).await.unwrap();
        let got = client.get(ns(GetContainerRequest { id })).await.unwrap().into_inner();
        made.push(got.container.unwrap());
    }
    for filters in [vec![], vec!["id~=/.*/".to_owned()]] {
        let request = ListContainersRequest { filters: filters.clone() };
        let listed = client.list(ns(request)).await.unwrap().into_inner().containers;
        assert_eq!(listed, made, "filters {filters:?}");
    }
    let request = ListContainersRequest { filters: Vec::new() };
    let none = client.list(in_ns("nobody", request)).await.unwrap().into_inner();
    assert!(none.containers.is_empty());
    daemon.stop().await;
}

/// A list longer than a message is refused, and the other ways to it are open.
#[tokio::test(flavor = "multi_thread")]
async fn too_long_for_a_message() {
    let daemon = Harness::start().await;
    let channel = daemon.channel();
    let mut client = ContainersClient::new(channel).max_decoding_message_size(64 << 20);
    for n in 0..5 {
        let spec = Some(Any { type_url: "spec".into(), value: vec![7; 4 << 20] });
        let [_, least, _] = containers();
        let container = Some(Container { id: format!("huge-{n}"), spec, ..least });
        client.create(ns(CreateContainerRequest { container })).await.unwrap();
    }
    let list = |filters| ListContainersRequest { filters };
    let refused = client.list(ns(list(Vec::new()))).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::ResourceExhausted, "{refused}");
    let one = client.list(ns(list(vec!["id==huge-3".into()]))).await.unwrap().into_inner();
    assert_eq!(one.containers.len(), 1);
    let mut stream = client.list_stream(ns(list(Vec::new()))).await.unwrap().into_inner();
    let mut streamed = 0;
    while stream.message().await.unwrap().is_some() {
        streamed += 1;
    }
    assert_eq!(streamed, 5);
    daemon.stop().await;
}

/// A long list is read by two threads; it is the same list.
#[tokio::test(flavor = "multi_thread")]
async fn long_lists_are_whole_and_in_order() {
    const COUNT: usize = 1_500;
    let daemon = Harness::start().await;
    let client = ContainersClient::new(daemon.channel());
    let [_, least, _] = containers();
    let mut ids: Vec<String> =
        (0..COUNT).map(|n| format!("{}-{n:x}", ["a", "container", "z"][n % 3])).collect();
    let creating = ids.iter().map(|id| {
        let container = Some(Container { id: id.clone(), ..least.clone() });
        let mut client = client.clone();
        async move { client.create(ns(CreateContainerRequest { container })).await }
    });
    futures_util::future::try_join_all(creating).await.unwrap();
    ids.sort_unstable();
    let request = ListContainersRequest { filters: Vec::new() };
    let listed = client.clone().list(ns(request)).await.unwrap().into_inner().containers;
    let listed: Vec<String> = listed.into_iter().map(|container| container.id).collect();
    assert_eq!(listed, ids);
    daemon.stop().await;
}
