//! Text of a wanted length that any tokenizer takes.

use super::random::Random;

/// Common words. In the vocabularies of published models each is one token after a blank, and synthetic models are given a
/// vocabulary where each is, so a text of n of them has about n tokens. What it really has is read off the usage.
#[rustfmt::skip]
pub const WORDS: [&str; 350] = [
    "about", "above", "across", "after", "again", "air", "all", "along", "also", "always", "and", "animal", "answer",
    "are", "ask", "away", "back", "ball", "bank", "bear", "because", "been", "before", "began", "behind", "best", "better",
    "between", "big", "bird", "black", "blue", "boat", "book", "both", "box", "boy", "bring", "brown", "build", "but",
    "call", "came", "can", "car", "care", "carry", "change", "children", "city", "clear", "close", "cold", "color", "come",
    "could", "country", "course", "cut", "dark", "day", "deep", "different", "door", "down", "draw", "dream", "dry",
    "each", "early", "earth", "east", "easy", "end", "enough", "even", "every", "eye", "face", "fact", "fall", "family",
    "far", "fast", "father", "feet", "few", "field", "find", "fire", "first", "fish", "five", "follow", "food", "for",
    "form", "found", "four", "free", "friend", "from", "full", "game", "gave", "girl", "give", "glass", "gold", "good",
    "great", "green", "ground", "group", "grow", "had", "half", "hand", "hard", "has", "head", "hear", "heart", "heat",
    "help", "here", "high", "hold", "home", "horse", "hot", "hour", "house", "how", "idea", "inside", "island", "just",
    "keep", "kind", "king", "know", "land", "large", "last", "late", "learn", "leave", "left", "letter", "life", "light",
    "like", "line", "list", "little", "live", "long", "look", "love", "made", "main", "make", "man", "many", "map", "mark",
    "mean", "men", "might", "mile", "mind", "money", "moon", "more", "morning", "most", "mother", "mountain", "move",
    "much", "music", "must", "name", "near", "need", "never", "new", "night", "north", "note", "nothing", "number", "off",
    "often", "old", "once", "one", "only", "open", "order", "other", "our", "outside", "over", "page", "paper", "part",
    "pass", "past", "people", "perhaps", "piece", "place", "plain", "plan", "plant", "play", "point", "poor", "power",
    "press", "problem", "put", "question", "quick", "quiet", "rain", "ran", "reach", "read", "ready", "real", "red",
    "rest", "right", "river", "road", "rock", "room", "round", "run", "said", "same", "saw", "say", "school", "sea",
    "second", "see", "seem", "sentence", "set", "seven", "shape", "she", "ship", "short", "show", "side", "simple",
    "since", "sing", "sit", "six", "size", "sleep", "slow", "small", "snow", "some", "song", "soon", "sound", "south",
    "space", "stand", "star", "start", "state", "stay", "step", "still", "stone", "stood", "stop", "story", "street",
    "strong", "sun", "sure", "table", "take", "talk", "teach", "tell", "ten", "than", "that", "the", "their", "them",
    "then", "there", "these", "they", "thing", "think", "this", "those", "thought", "three", "time", "today", "together",
    "told", "took", "top", "toward", "town", "tree", "true", "try", "turn", "two", "under", "unit", "until", "upon", "use",
    "usual", "very", "voice", "wait", "walk", "wall", "want", "warm", "was", "watch", "water", "way", "week", "well",
    "went", "were", "west", "what", "wheel", "when",
];

/// `count` words, one blank before each but the first.
pub(super) fn text(random: &mut Random, count: usize) -> String {
    let mut text = String::with_capacity(count * 6);
    for index in 0..count {
        if index > 0 {
            text.push(' ');
        }
        text.push_str(random.pick(&WORDS));
    }
    text
}
