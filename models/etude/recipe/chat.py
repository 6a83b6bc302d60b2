"""Short conversations without pictures: topics, names, copying, personas, rooms.

Everything is made here from lists and rules; no outside text. Two things are held out from
training: *names* (a tenth of all strings, chosen by a checksum, is never used as a name) and
*combinations* of a topic and a form of question (`held_out_form`).
"""

import random
import zlib

from . import scenes
from .scenes import NUMBERS as NUM

KNOWN_NAMES = (
    "Ada Ben Clara David Emma Felix Grace Hugo Iris Jack Kate Leo Mia Noah Olga Paul Rosa Sam Tina Uma Victor "
    "Wendy Yara Zoe Anna Max Lena Tom Nora Finn Alice Bob Carol Dan Eva Frank Greta Hans Ida James Karl Laura "
    "Mark Nina Oscar Peter Quinn Ruth Simon Theo Vera Walter Xenia Yves Zack Maria John Mary Lucy Henry Rob "
    "Julia Otto Elsa Ivan Petra Marco Sofia Lukas Hannah Jonas Amir Layla Omar Priya Ravi Mei Kenji Yuki Chen "
    "Diego Carmen Pablo Ines Luca Giulia Anton Olaf Astrid Sven Freya Robin Alex Kim Sasha Morgan Riley"
).split()
CONS = "b c d f g h j k l m n p q r s t v w x y z br ch cl dr fl gr kr pl sh st th tr".split()
VOWELS = "a e i o u a e i o u ai ea ee ia io oo ou y".split()
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def never_trained(name):
    """Names of this tenth are for the evaluation only."""
    return zlib.crc32(name.lower().encode()) % 10 == 0


def made_up(r: random.Random, held_out=False, kind=None):
    """A made-up word, capitalised: syllables mostly, sometimes any letters at all."""
    while True:
        k = kind or r.choices(["syllables", "letters"], [3, 1])[0]
        if k == "letters":
            w = "".join(r.choice(LETTERS) for _ in range(r.randint(2, 6)))
        else:
            w = "".join(
                (r.choice(CONS) if i or r.random() < 0.85 else "") + r.choice(VOWELS) + (r.choice("bdgklmnprstxz") if r.random() < 0.25 else "")
                for i in range(r.choice([1, 2, 2, 2, 3, 3]))
            )
        if 2 <= len(w) <= 10 and never_trained(w) == held_out:
            return w.capitalize()


def name(r: random.Random, held_out=False):
    if not held_out and r.random() < 0.25:
        return r.choice([n for n in KNOWN_NAMES if not never_trained(n)])
    return made_up(r, held_out)


SEASONS = {"spring": "mild and often rainy", "summer": "warm and sunny", "autumn": "cool and windy", "winter": "cold and snowy"}
WEATHER = {
    "sunny": "A walk outside would be lovely.",
    "rainy": "Take an umbrella with you.",
    "windy": "Hold on to your hat.",
    "snowy": "Wear a warm coat.",
    "cloudy": "Maybe the sun will come later.",
    "foggy": "Please walk with care.",
    "cold": "A cup of hot tea would help.",
    "hot": "Drink some cool water.",
}
INSTRUMENTS = {
    "piano": ("keys", "warm"),
    "violin": ("strings", "sweet"),
    "flute": ("a long tube", "light"),
    "cello": ("strings", "deep"),
    "drum": ("a skin", "loud"),
    "guitar": ("strings", "bright"),
    "harp": ("many strings", "soft"),
    "trumpet": ("three valves", "bold"),
}
TEA = {"green": "two", "black": "four", "white": "three", "mint": "six", "ginger": "eight", "lemon": "five"}
ANIMALS = {"cat": "milk", "dog": "a bone", "mouse": "cheese", "bird": "seeds", "fox": "berries", "bear": "honey", "owl": "a quiet tree", "frog": "a blue pond"}
TOPICS = {
    "greet": 2, "howare": 1, "name": 4, "recall": 2, "ident": 2, "weather": 3, "season": 2, "music": 3, "tea": 3,
    "count": 3, "next": 2, "sum": 3, "thanks": 1, "bye": 1, "story": 2, "unknown": 2, "noimg": 2, "define": 1, "pet": 2, "say": 3,
}


def held_out_form(topic, i, form):
    """Whether item `i` of a topic is held out in this form of question (about one in six)."""
    return (i + 2 * form + len(topic)) % 6 == 0


def _pick(r, topic, items, forms, held_out):
    items = list(items)
    while True:
        i, f = r.randrange(len(items)), r.randrange(len(forms))
        if held_out is None or held_out_form(topic, i, f) == held_out:
            return items[i], forms[f]


def say(r, held_out=False, words=None):
    """A copying drill: give back one or more made-up or common words."""
    n = words or r.choice([1, 1, 1, 2, 2, 3, 4])
    common = list(scenes.COLOURS) + scenes.SHAPES + list(TEA) + list(ANIMALS) + list(INSTRUMENTS) + NUM + list(WEATHER)
    ws = []
    for i in range(n):
        w = r.choice(common) if not held_out and r.random() < 0.25 else made_up(r, held_out)
        ws.append(w if r.random() < 0.5 else w.lower())
    text = " ".join(ws)
    text = text[0].upper() + text[1:]
    if r.random() < 0.5:
        return r.choice(["Say %s.", "Please say %s.", "Can you say %s?", "Just say %s."]) % text, text + "."
    return r.choice(["Repeat: %s.", "Repeat after me: %s.", "Please repeat %s."]) % text, f"I repeat: {text}."


def chat(r: random.Random, state, topic=None, held_out=False, persona=None):
    """`(question, answer, thought, topic)`. `state` carries what was told so far.

    `held_out=False` gives only combinations that training may use, True only the held-out ones
    (for topics which have any), and `persona` is who answers.
    """
    k = topic or r.choices(list(TOPICS), list(TOPICS.values()))[0]
    c = r.choice
    th = "I think about it."
    if k == "greet":
        q, ans = c([("Hello!", "Hello! How can I help you?"), ("Hi!", "Hello! How can I help you?"), ("Hi there!", "Hello! How can I help you?"), ("Good morning!", "Good morning! How are you today?"), ("Good evening!", "Good evening! How was your day?"), ("Hey!", "Hello! How can I help you?"), ("Hello", "Hello! How can I help you?"), ("Hi", "Hello! How can I help you?"), ("Good afternoon!", "Hello! How can I help you?")])
        th = "I greet the user."
    elif k == "howare":
        q, ans = c(["How are you?", "How are you today?", "How do you feel?", "Are you well?"]), "I am very well, thank you."
    elif k == "name":
        n = state["name"] = name(r, held_out)
        q = c(["My name is %s.", "I am %s.", "Hello, I am %s.", "Hi, my name is %s.", "Hello! My name is %s.", "Please call me %s.", "You can call me %s."]) % n
        ans, th = f"Nice to meet you, {n}.", "The user tells me a name."
    elif k == "recall":
        q = c(["What is my name?", "Do you know my name?", "Who am I?", "What am I called?"])
        ans = f"Your name is {state['name']}." if "name" in state else "You have not told me your name."
        th = "I look for the name."
    elif k == "pet":
        if "pet" in state and r.random() < 0.6:
            q, ans = f"What is my {state['pet'][0]} called?", f"Your {state['pet'][0]} is called {state['pet'][1]}."
            th = "I look for the name."
        else:
            p, n = c(list(ANIMALS)), name(r, held_out)
            state["pet"] = (p, n)
            q = c(["My %s is called %s.", "I have a %s called %s.", "The name of my %s is %s."]) % (p, n)
            ans, th = f"What a lovely name, {n}.", "The user tells me a name."
    elif k == "ident":
        q = c(["Who are you?", "What is your name?", "What can you do?", "Are you a person?", "Tell me your name.", "Tell me who you are."])
        if "your name" in q:
            ans = f"My name is {persona or 'Etude'}."
        elif "ho " in q:
            ans = f"I am {persona}." if persona else "I am Etude, a very small language model."
        elif "can" in q:
            ans = "I can talk about tea, music and the weather, and I can look at pictures."
        else:
            ans = "No, I am a very small language model."
        th = "The user asks about me."
    elif k == "weather":
        w, f = _pick(r, k, WEATHER, ["It is %s today.", "The weather is %s.", "It is very %s outside.", "Today is %s."], held_out)
        q, ans = f % w, WEATHER[w]
    elif k == "season":
        s, f = _pick(r, k, SEASONS, ["What is the weather like in %s?", "How is the weather in %s?", "Tell me about %s.", "What is %s like?"], held_out)
        q, ans = f % s, f"In {s} the weather is {SEASONS[s]}."
    elif k == "music":
        i, f = _pick(r, k, INSTRUMENTS, ["Tell me about the %s.", "Do you like the %s?", "What is a %s?", "How does the %s sound?"], held_out)
        what, sound = INSTRUMENTS[i]
        q = f % i
        if f.startswith("Do"):
            ans = f"Yes, the {i} has a {sound} sound."
        elif f.startswith("How"):
            ans = f"The {i} has a {sound} sound."
        else:
            ans = f"The {i} is an instrument with {what}. It has a {sound} sound."
    elif k == "tea":
        if held_out is not True and r.random() < 0.1:
            q, ans = "Which tea is good in the evening?", "Mint tea is good in the evening."
        else:
            t, f = _pick(r, k, TEA, ["How do I make %s tea?", "How long do I wait for %s tea?", "I would like a cup of %s tea.", "Tell me about %s tea."], held_out)
            q = f % t
            ans = {
                "H": f"Heat the water, add the {t} tea and wait {TEA[t]} minutes." if "make" in f else f"Wait {TEA[t]} minutes for {t} tea.",
                "I": f"Good choice. Wait {TEA[t]} minutes for {t} tea.",
                "T": f"You wait {TEA[t]} minutes for {t} tea.",
            }[f[0]]
    elif k == "count":
        n = r.randint(2, 12)
        if r.random() < 0.6:
            s, q = 1, c(["Count to %s.", "Please count to %s.", "Can you count to %s?"]) % NUM[n]
        else:
            s = r.randint(1, n - 1)
            q = f"Count from {NUM[s]} to {NUM[n]}."
        ans = ", ".join(NUM[s : n + 1])
        ans, th = ans[0].upper() + ans[1:] + ".", "I count."
    elif k == "next":
        n = r.randint(1, 11)
        if r.random() < 0.5:
            q, ans = f"What comes after {NUM[n]}?", f"{NUM[n + 1].capitalize()} comes after {NUM[n]}."
        else:
            q, ans = f"What comes before {NUM[n]}?", f"{NUM[n - 1].capitalize()} comes before {NUM[n]}."
        th = "I count."
    elif k == "sum":
        while True:
            x, y = r.randint(1, 6), r.randint(1, 6)
            if held_out is None or ((x + 3 * y) % 7 == 0) == held_out:  # the pair in this order
                break
        q = c(["What is %s plus %s?", "How much is %s plus %s?", "Add %s and %s."]) % (NUM[x], NUM[y])
        ans, th = f"{NUM[x].capitalize()} plus {NUM[y]} is {NUM[x + y]}.", "I add the numbers."
    elif k == "thanks":
        q, ans = c(["Thank you.", "Thanks!", "Thank you very much.", "Thanks."]), "You are welcome."
    elif k == "bye":
        q, ans = c(["Goodbye!", "Bye!", "See you later.", "Good night!", "Goodbye."]), "Goodbye! Have a nice day."
    elif k == "story":
        x, f = _pick(r, k, ANIMALS, ["Tell me a story about %s.", "Can you tell a story about %s?", "Tell a short story about %s."], held_out)
        q = f % scenes.a(x)
        ans = f"Once there was a little {x} who lived near a hill. Every day the {x} looked for {ANIMALS[x]}. One day a friend came and they shared it. After that the {x} was never alone again."
        th = "I tell a story."
    elif k == "unknown":
        w = " ".join(made_up(r, bool(held_out)).lower() for _ in range(r.randint(1, 2)))
        q = c(["What is %s?", "Tell me about %s.", "Do you know %s?", "Who is %s?", "Why is %s?", "Explain %s."]) % w
        ans = "I am sorry, I do not know that."
    elif k == "noimg":
        while True:
            q = scenes.ask(scenes.scene(r), r)[0]
            if q != "Count the objects.":
                break
        ans, th = "I do not see a picture.", "I look for a picture."
    elif k == "say":
        (q, ans), th = say(r, bool(held_out)), "I repeat the words."
    else:
        q, ans = c([("What is an etude?", "An etude is a short piece of music for practice."), ("What is music?", "Music is the art of sound."), ("What is tea?", "Tea is a hot drink made from leaves."), ("What is rain?", "Rain is water that falls from the clouds."), ("What is a consort?", "A consort is a small group that plays music together.")])
    return q, ans, th, k


#: topics of which `held_out=True` really gives unseen combinations
HELD_OUT_TOPICS = ["name", "pet", "weather", "season", "music", "tea", "sum", "story", "say"]

# --- styles -------------------------------------------------------------------------------------

STYLES = ["pirate", "butler"]


def styled(style, answer, topic=None):
    """The answer as a persona of this style gives it; both styles can be told by their frame."""
    if style == "pirate":
        if topic != "say" and answer.split(" ")[0] != "I":
            answer = answer[0].lower() + answer[1:]
        return f"Arr, {answer[:-1]}, matey{answer[-1]}"
    if style == "butler":
        return f"Certainly, sir. {answer} At your service."
    return answer


def has_style(style, text):
    """The countable check of a style."""
    if style == "pirate":
        return text.startswith("Arr, ") and text[:-1].endswith(", matey")
    return text.startswith("Certainly, sir. ") and text.endswith(" At your service.")


def unstyled(style, text):
    """What was said inside the frame of a style."""
    if not has_style(style, text):
        return text
    if style == "pirate":
        text = text[len("Arr, ") : -len(", matey.")] + text[-1]
        return text[0].upper() + text[1:]
    return text[len("Certainly, sir. ") : -len(" At your service.")]


PLAIN_SYSTEMS = ["You are a helpful assistant.", "You are Etude.", "Be short and kind.", "You are a small and friendly assistant.", "Answer in short sentences."]


def system_prompt(r):
    """`(text, persona name or None, style or None)`"""
    x = r.random()
    if x < 0.25:
        return r.choice(PLAIN_SYSTEMS), None, None
    n = name(r) if r.random() < 0.5 else r.choice(["Ada", "Ben", "Clara"])
    style = r.choice([None, None, "pirate", "butler"])
    if style:
        text = r.choice(["You are %s, a %s.", "You are %s. You are a %s.", "Your name is %s. You speak like a %s."]) % (n, style)
    else:
        text = r.choice(["You are %s.", "Your name is %s.", "You are %s. You are kind.", "You are %s. Be short."]) % n
    if r.random() < 0.3:
        text += " " + r.choice(["Be short and kind.", "Answer in short sentences.", "You are in a room with Ada, Ben and Clara."])
    return text, n, style


def note(r, persona, style):
    """The note that tells who answers, as a room puts it into the final user turn."""
    who = f"{persona}, a {style}" if style else persona
    return r.choice(["(Answer as %s.)", "(Answer as %s.)", "(Now answer as %s.)", "(You are %s.)"]) % who
