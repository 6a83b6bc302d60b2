//! Models in the API's form.

use axum::body::Body;
use serde_json::{Value, json};

use super::failure;
use crate::client::{Client, request};

#[tokio::test]
async fn models_have_the_api_s_form_for_its_clients() {
    let client = Client::with("[[persona]]\nname = \"ada\"\n[limits]\nreply_tokens = 50\n").await;
    let get = async |path: &str| {
        let mut request = request("GET", path, Body::empty());
        request.headers_mut().insert("anthropic-version", "2023-06-01".parse().unwrap());
        client.send(request).await
    };
    let all = get("/v1/models").await.good();
    let names = |list: &Value| -> Vec<String> {
        list["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&all), ["etude", "ada", "butler", "pirate"]);
    assert_eq!(
        (&all["has_more"], &all["first_id"], &all["last_id"]),
        (&json!(false), &json!("etude"), &json!("pirate"))
    );
    let first = &all["data"][0];
    assert_eq!(
        (&first["type"], &first["max_tokens"], &first["lifecycle"]),
        (&json!("model"), &json!(50), &json!("active"))
    );
    let date = first["created_at"].as_str().unwrap();
    assert!(date.len() == 20 && date.starts_with("20") && date.ends_with('Z'), "{date}");
    // Pages, forwards and backwards.
    let page = get("/v1/models?limit=2").await.good();
    assert_eq!((names(&page), &page["has_more"]), (vec!["etude".to_owned(), "ada".into()], &json!(true)));
    let page = get("/v1/models?limit=2&after_id=ada").await.good();
    assert_eq!((names(&page), &page["has_more"]), (vec!["butler".to_owned(), "pirate".into()], &json!(false)));
    let page = get("/v1/models?limit=2&before_id=pirate").await.good();
    assert_eq!((names(&page), &page["has_more"]), (vec!["ada".to_owned(), "butler".into()], &json!(true)));
    let none = get("/v1/models?after_id=pirate").await.good();
    assert_eq!((names(&none).len(), &none["first_id"]), (0, &Value::Null));
    assert_eq!(failure(&get("/v1/models?limit=0").await).0, 400);
    assert_eq!(failure(&get("/v1/models?after_id=eve").await).0, 400);
    assert_eq!(get("/v1/models/ada").await.good()["id"], "ada");
    assert_eq!(failure(&get("/v1/models/eve").await).2, "model_not_found");
    assert_eq!(client.get("/v1/models").await.good()["object"], "list", "without the header it is the other API's");
}
