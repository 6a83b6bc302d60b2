//! The fields of the messages of `vllm.Inference` and `vllm.Control` (version 0.6 of vLLM's published protocol), by which messages
//! are written as readable JSON. A test compares this table with the published crate.

/// How a field's value goes over the wire, and how it stands in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// UTF-8.
    Text,
    /// Bytes, as hexadecimal.
    Bytes,
    /// A varint without sign: numbers and enums.
    Unsigned,
    /// A varint in two's complement.
    Signed,
    /// A varint, 0 or 1.
    Bool,
    /// Four bytes.
    Float,
    /// Eight bytes.
    Double,
    /// Another message.
    Message(&'static [Field]),
}

/// How often a field stands in a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Label {
    /// At most once.
    One,
    /// Many times; numbers are packed.
    Many,
    /// Entries of key (1) and value (2). The kind is the key's, the value's is here.
    Map(&'static Kind),
}

/// A field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Field {
    pub(crate) number: u32,
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) label: Label,
}

use Kind::{Bool, Bytes, Double, Float, Message, Signed, Text, Unsigned};

const fn one(number: u32, name: &'static str, kind: Kind) -> Field {
    Field { number, name, kind, label: Label::One }
}

const fn many(number: u32, name: &'static str, kind: Kind) -> Field {
    Field { number, name, kind, label: Label::Many }
}

const fn map(number: u32, name: &'static str, key: Kind, value: &'static Kind) -> Field {
    Field { number, name, kind: key, label: Label::Map(value) }
}

type Fields = &'static [Field];

// `google.protobuf.Struct`. Statics may name each other in a circle; constants may not.
static STRUCT: [Field; 1] = [map(1, "fields", Text, &Message(&VALUE))];
static VALUE: [Field; 6] = [
    one(1, "null_value", Unsigned),
    one(2, "number_value", Double),
    one(3, "string_value", Text),
    one(4, "bool_value", Bool),
    one(5, "struct_value", Message(&STRUCT)),
    one(6, "list_value", Message(&LIST)),
];
static LIST: [Field; 1] = [many(1, "values", Message(&VALUE))];

static TOKEN_IDS: [Field; 1] = [many(1, "ids", Unsigned)];
static CHOICES: [Field; 1] = [many(1, "choices", Text)];

static GENERATE_REQUEST: [Field; 18] = [
    one(1, "request_id", Text),
    one(2, "model", Text),
    one(3, "text", Text),
    one(4, "token_ids", Message(&TOKEN_IDS)),
    one(5, "temperature", Float),
    one(6, "sampling", Message(&SAMPLING)),
    one(7, "decoding", Message(&DECODING)),
    one(8, "stopping", Message(&STOPPING)),
    one(9, "response", Message(&RESPONSE_OPTIONS)),
    one(10, "kv", Message(&KV)),
    one(11, "truncate_prompt_tokens", Unsigned),
    one(12, "priority", Signed),
    one(13, "session_id", Text),
    many(14, "media", Message(&MEDIA)),
    one(15, "lora_name", Text),
    one(16, "watermarking", Bool),
    one(17, "kv_hints", Message(&KV_HINTS)),
    one(18, "engine_reasoning_gate", Message(&REASONING_GATE)),
];
static SAMPLING: [Field; 5] = [
    one(1, "num_sequences", Unsigned),
    one(2, "top_k", Unsigned),
    one(3, "top_p", Float),
    one(4, "min_p", Float),
    one(5, "seed", Signed),
];
static DECODING: [Field; 12] = [
    one(1, "presence_penalty", Float),
    one(2, "frequency_penalty", Float),
    one(3, "repetition_penalty", Float),
    map(4, "logit_bias", Unsigned, &Float),
    many(5, "allowed_token_ids", Unsigned),
    one(6, "json", Text),
    one(7, "regex", Text),
    one(8, "choice", Message(&CHOICES)),
    one(9, "grammar", Text),
    one(10, "json_object", Bool),
    one(11, "structural_tag", Text),
    many(12, "bad_words_token_ids", Message(&TOKEN_IDS)),
];
static STOPPING: [Field; 7] = [
    one(1, "max_new_tokens", Unsigned),
    one(2, "min_new_tokens", Unsigned),
    many(3, "stop_token_ids", Unsigned),
    many(4, "stop_strings", Text),
    one(5, "include_stop_strings", Bool),
    one(6, "ignore_eos", Bool),
    one(7, "thinking_token_budget", Signed),
];
static RESPONSE_OPTIONS: [Field; 8] = [
    one(1, "prompt_token_ids", Bool),
    one(2, "prompt_logprobs", Bool),
    one(3, "prompt_candidates", Message(&CANDIDATES)),
    one(4, "output_text", Bool),
    one(5, "output_token_ids", Bool),
    one(6, "output_logprobs", Bool),
    one(7, "output_candidates", Message(&CANDIDATES)),
    one(8, "skip_special_tokens", Bool),
];
static CANDIDATES: [Field; 3] =
    [one(1, "top_n", Unsigned), one(2, "token_ids", Message(&TOKEN_IDS)), one(3, "all", Bool)];
static KV: [Field; 4] = [
    one(1, "bypass_prefix_cache", Bool),
    one(2, "cache_salt", Text),
    one(3, "kv_transfer_params", Message(&STRUCT)),
    one(4, "ec_transfer_params", Message(&STRUCT)),
];
static MEDIA: [Field; 7] = [
    one(1, "modality", Unsigned),
    one(2, "url", Text),
    one(3, "data_uri", Text),
    one(4, "raw_bytes", Bytes),
    one(5, "mime_type", Text),
    one(6, "uuid", Text),
    one(7, "features", Message(&FEATURES)),
];
static FEATURES: [Field; 6] = [
    one(1, "kwargs", Bytes),
    one(2, "identifier", Text),
    one(3, "offset", Unsigned),
    one(4, "length", Unsigned),
    one(5, "mm_hash", Text),
    many(6, "is_embed", Bool),
];
static KV_HINTS: [Field; 3] =
    [one(1, "protocol_version", Text), one(2, "message_id", Text), many(3, "actions", Message(&KV_HINT_ACTION))];
static KV_HINT_ACTION: [Field; 4] = [
    one(1, "action_id", Text),
    one(2, "action_type", Text),
    one(3, "action_version", Text),
    one(4, "payload", Message(&STRUCT)),
];
static REASONING_GATE: [Field; 2] = [one(1, "reasoning_ended", Bool), one(2, "chat_template_kwargs", Message(&STRUCT))];

static GENERATE_RESPONSE: [Field; 2] =
    [one(1, "prompt_info", Message(&PROMPT_INFO)), one(2, "outputs", Message(&OUTPUT))];
static OUTPUT: [Field; 9] = [
    one(1, "index", Unsigned),
    one(2, "text", Text),
    one(3, "num_tokens", Unsigned),
    many(4, "token_ids", Unsigned),
    many(5, "logprobs", Float),
    many(6, "ranks", Unsigned),
    many(7, "candidate_tokens", Message(&CANDIDATE_INFO)),
    one(8, "finish_info", Message(&FINISH_INFO)),
    many(10, "sampling_mask", Message(&TOKEN_IDS)),
];
static PROMPT_INFO: [Field; 5] = [
    one(1, "num_prompt_tokens", Unsigned),
    many(2, "token_ids", Unsigned),
    many(3, "logprobs", Float),
    many(4, "ranks", Unsigned),
    many(5, "candidate_tokens", Message(&CANDIDATE_INFO)),
];
static FINISH_INFO: [Field; 8] = [
    one(1, "num_output_tokens", Unsigned),
    one(2, "finish_reason", Unsigned),
    one(3, "stop_token_id", Unsigned),
    one(4, "eos_token_id", Unsigned),
    one(5, "stop_string", Text),
    one(6, "kv_transfer_params", Message(&STRUCT)),
    one(8, "ec_transfer_params", Message(&STRUCT)),
    one(9, "num_cached_tokens", Unsigned),
];
static CANDIDATE_INFO: [Field; 1] = [many(1, "tokens", Message(&TOKEN_INFO))];
static TOKEN_INFO: [Field; 3] = [one(1, "id", Unsigned), one(2, "logprob", Float), one(3, "rank", Unsigned)];

static NOTHING: [Field; 0] = [];
static SERVER_INFO: [Field; 13] = [
    one(1, "engine_version", Text),
    one(2, "api_version", Text),
    one(3, "instance_id", Text),
    one(4, "parallelism", Message(&PARALLELISM)),
    one(5, "max_model_len", Unsigned),
    one(6, "kv_block_size", Unsigned),
    one(7, "total_kv_blocks", Unsigned),
    one(8, "max_running_requests", Unsigned),
    one(9, "max_batched_tokens", Unsigned),
    one(10, "max_loras", Unsigned),
    one(11, "rl_capabilities", Message(&RL)),
    one(12, "proto_version", Text),
    one(14, "effective_attention_block_size", Unsigned),
];
static RL: [Field; 4] = [
    one(1, "weight_transfer_enabled", Bool),
    one(2, "weight_transfer_backend", Text),
    one(3, "sleep_mode_enabled", Bool),
    one(4, "draft_weight_updates_enabled", Bool),
];
static PARALLELISM: [Field; 7] = [
    one(1, "tensor_parallel_size", Unsigned),
    one(2, "pipeline_parallel_size", Unsigned),
    one(3, "data_parallel_size", Unsigned),
    one(4, "data_parallel_rank", Unsigned),
    one(5, "decode_context_parallel_size", Unsigned),
    one(6, "world_size", Unsigned),
    one(7, "data_parallel_size_local", Unsigned),
];
static MODEL_INFO: [Field; 9] = [
    one(1, "model_id", Text),
    one(2, "served_model_name", Text),
    many(3, "served_model_aliases", Text),
    one(20, "supports_text_input", Bool),
    one(21, "supports_token_ids_input", Bool),
    one(22, "supports_lora", Bool),
    one(23, "supports_multimodal", Bool),
    one(24, "reasoning_parser", Text),
    one(25, "tool_call_parser", Text),
];
static ABORT: [Field; 1] = [many(1, "request_ids", Text)];
static ADAPTER: [Field; 3] = [one(1, "lora_id", Signed), one(2, "lora_name", Text), one(3, "source_path", Text)];
static LOAD_LORA: [Field; 2] = [one(1, "lora_name", Text), one(2, "source_path", Text)];
static ONE_ADAPTER: [Field; 1] = [one(1, "adapter", Message(&ADAPTER))];
static UNLOAD_LORA: [Field; 1] = [one(1, "lora_name", Text)];
static ADAPTERS: [Field; 1] = [many(1, "adapters", Message(&ADAPTER))];
static PAUSE: [Field; 2] = [one(1, "mode", Unsigned), one(2, "clear_cache", Bool)];
static PAUSED: [Field; 1] = [one(1, "paused", Bool)];
static SLEEPING: [Field; 1] = [one(1, "sleeping", Bool)];
static WEIGHT_VERSION: [Field; 1] = [one(1, "weight_version", Text)];
static KV_SOURCES: [Field; 1] = [many(1, "sources", Message(&KV_SOURCE))];
static KV_SOURCE: [Field; 10] = [
    one(1, "transport", Text),
    one(2, "endpoint", Text),
    one(3, "topic", Text),
    one(4, "replay_endpoint", Text),
    one(5, "data_parallel_rank", Unsigned),
    one(6, "encoding", Text),
    one(7, "schema_version", Unsigned),
    one(8, "buffer_steps", Unsigned),
    one(9, "hwm", Unsigned),
    one(10, "max_queue_size", Unsigned),
];

/// The fields of a method's request and of its answer, by its path. Methods that change weights are not here: no client of ours
/// calls them, and their messages are kept as bytes.
pub(crate) fn method(path: &str) -> Option<(Fields, Fields)> {
    Some(match path {
        "/vllm.Inference/Generate" | "/vllm.Inference/GenerateStream" => (&GENERATE_REQUEST, &GENERATE_RESPONSE),
        "/vllm.Control/GetServerInfo" => (&NOTHING, &SERVER_INFO),
        "/vllm.Control/GetModelInfo" => (&NOTHING, &MODEL_INFO),
        "/vllm.Control/Abort" => (&ABORT, &NOTHING),
        "/vllm.Control/LoadLora" => (&LOAD_LORA, &ONE_ADAPTER),
        "/vllm.Control/UnloadLora" => (&UNLOAD_LORA, &ONE_ADAPTER),
        "/vllm.Control/ListLoras" => (&NOTHING, &ADAPTERS),
        "/vllm.Control/PauseGeneration" => (&PAUSE, &NOTHING),
        "/vllm.Control/ResumeGeneration" | "/vllm.Control/Shutdown" => (&NOTHING, &NOTHING),
        "/vllm.Control/IsPaused" => (&NOTHING, &PAUSED),
        "/vllm.Control/IsSleeping" => (&NOTHING, &SLEEPING),
        "/vllm.Control/GetWeightVersion" => (&NOTHING, &WEIGHT_VERSION),
        "/vllm.Control/GetKvEventSources" => (&NOTHING, &KV_SOURCES),
        _ => return None,
    })
}
