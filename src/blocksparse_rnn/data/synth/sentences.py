"""English sentences without end: a small grammar over our own word lists, cut to a wanted vocabulary.

`Grammar(300).sentence(rng)` says things like "the quiet farmer carried seven lanterns past the
station". Every word of a sentence comes from exactly one category of `WORDS`, and no word is in two
categories, so the number of words that can occur is the sum of the categories' sizes.
"""

import random

from blocksparse_rnn.errors import UserError

MIN_VOCABULARY = 100
MIN_WORDS, MAX_WORDS = 3, 14

# The first words of each category are the ones that small vocabularies keep.
WORDS: dict[str, list[str]] = {
    category: words.split()
    for category, words in {
        "determiner": "the my your our their his this that another each every",
        "name": """
            anna peter maria thomas julia robert helen martin clara daniel sophie oliver emma victor lucy
            henry laura simon nora arthur alice george rosa walter irene hugo martha felix ruth oscar
            sarah david linda edward susan frank judith albert monica philip teresa conrad agnes leonard
            fiona gilbert hannah howard ingrid jacob karen kevin louise marcus nadia nathan olivia patrick
            paula quentin rachel raymond sandra stephen tanya timothy ursula vincent wendy william yvonne
            adam barbara benjamin carla charles diana dominic elena ernest frida gordon harriet isaac
            jasmine kenneth lydia malcolm natalie norman pamela rebecca rupert sylvia theodore valerie
            wilfred zara abigail bernard cecilia douglas eleanor francis gloria harold isabel julian
            katherine lawrence marion nicholas penelope ronald samuel tabitha winston""",
        "role": """
            farmer teacher doctor baker sailor painter neighbour singer driver lawyer student captain
            gardener nurse soldier writer king hunter waiter judge dancer plumber pilot tailor grandmother
            builder cook guard poet shepherd engineer uncle librarian dentist miller carpenter queen thief
            manager banker miner clerk fisherman visitor tourist blacksmith musician scientist mechanic
            officer brother sister mother father cousin nephew niece aunt grandfather child stranger
            friend customer reporter editor actor drummer violinist sculptor potter weaver butcher grocer
            barber jeweller merchant porter butler minister mayor senator governor ambassador detective
            inspector professor chemist surgeon astronomer explorer climber swimmer runner cyclist rider
            coach referee goalkeeper champion apprentice assistant secretary landlord tenant passenger
            conductor pianist magician juggler inventor architect translator philosopher historian
            accountant electrician firefighter lifeguard beekeeper woodcutter ferryman watchmaker""",
        "animal": """
            dog cat rabbit elephant donkey tiger monkey sparrow spider camel fox lion turtle goat crow
            squirrel penguin beetle dolphin chicken wolf otter eagle lizard hamster leopard parrot badger
            hedgehog pigeon kangaroo panther cow duck goose frog lamb pony puppy kitten swan owl falcon
            raven robin pelican flamingo ostrich peacock turkey rooster hen mouse mole beaver weasel
            raccoon buffalo giraffe zebra gorilla rhinoceros crocodile alligator python cobra salamander
            octopus lobster shrimp salmon trout walrus seagull magpie woodpecker butterfly dragonfly
            grasshopper caterpillar""",
        "thing": """
            bottle table lantern ladder basket window letter bucket mirror blanket hammer guitar wagon
            camera pencil kettle carpet candle umbrella trumpet statue jacket pillow drawer helmet saddle
            barrel button chimney compass curtain engine feather needle package painting piano ribbon
            shovel telescope ticket violin wallet whistle book lamp chair clock coat drum flag key map
            ring rope shirt spoon sword tent wheel bench bicycle blade bowl broom brush cabinet calendar
            cannon card chain chest coin cradle crown cup cushion desk diamond door envelope fence flute
            fork glove glass hat hook jar jewel kite knife lock magnet mattress medal napkin necklace
            notebook oven paddle paper parcel pen phone pistol plate pocket poster printer puppet purse
            puzzle radio razor rocket ruler sack sandal scarf scissors screen shelf shield shoe shutter
            sledge sofa sponge stamp stove suitcase sweater tablet teapot thread toolbox torch towel toy
            tractor tray trolley tunic typewriter vase velvet vest waistcoat wardrobe whip wire
            wrench zipper anchor apron armchair badge balloon bandage banner bathtub battery bell belt
            blender board bracelet brick briefcase canoe cape cartridge cigar collar computer cork cot
            crayon cube dagger dial doll dustbin earring easel fan faucet filter flask funnel furnace
            gadget goblet hairbrush hammock hose keyboard kimono locket lounge mug nail oar padlock""",
        "objects": """
            boats apples lanterns horses stones coins letters bottles potatoes pictures trees bridges
            windows tickets blankets ribbons hammers cherries pencils houses mountains songs stories
            bicycles flowers rivers buttons sandwiches candles kettles machines questions answers minutes
            pages roads shells sticks strawberries tomatoes towers trains villages wheels boxes brushes
            carrots chairs chickens clouds cookies eggs feathers fences glasses gloves islands jackets
            kittens ladders lemons maps mirrors needles onions oranges paintings pancakes peaches plates
            pumpkins puppies radishes rabbits ropes shoes spoons stamps stars tables tents walnuts wolves
            acorns arrows balloons bananas baskets bells benches berries blossoms""",
        "food": """
            bread soup cheese honey butter coffee rice sugar pepper chocolate milk lemonade mustard pasta
            porridge cake vinegar yoghurt salad jam water tea juice cream salt garlic ginger cinnamon
            spinach cabbage broccoli lettuce celery parsley oatmeal popcorn toast bacon beef mutton pork
            ham fish pudding custard syrup marmalade gravy sauce pastry pizza stew""",
        "place": """
            market river station garden kitchen mountain library forest harbour castle village office
            bridge museum hotel valley theatre factory meadow church school hospital island tower cellar
            stable bakery beach airport palace orchard tunnel cottage desert temple prison bank barn cave
            city town country courtyard field farm gallery hall hill house lake mill monastery park path
            pond pub road ruin shop shore street swamp terrace university vineyard warehouse windmill
            workshop zoo academy alley attic balcony basement bay bedroom border cabin canal canyon
            cathedral cemetery chapel circus classroom cliff coast college corner corridor crossroads
            doorway dungeon embassy fairground fountain fortress garage glacier greenhouse gymnasium
            highway jungle junction laboratory lagoon lighthouse mansion nursery parlour pavement
            playground plaza quarry reservoir restaurant roof staircase suburb supermarket tavern
            waterfall wharf yard""",
        "adjective": """
            old quiet golden heavy clever strange broken happy narrow hungry gentle dusty famous lonely
            empty ancient bitter careful crooked dirty elegant friendly giant honest invisible jolly kind
            lazy modern nervous ordinary patient round secret tired ugly valuable wooden young angry
            brave calm curious delicate enormous faithful generous handsome innocent jealous little
            muddy noble odd pleasant proud rusty shiny tiny useful wild warm cold bright dark soft hard
            sharp smooth rough thick thin tall short wide deep shallow loud silent fast slow fresh
            rotten rich poor simple precious perfect playful peaceful polite popular powerful
            private rare restless royal sacred sad scary serious shy silly sleepy sleek slender slippery
            sour spare spotless square steady sticky stolen stubborn stupid sudden sunny sweet swift
            tender terrible thirsty thoughtful torn tough unusual vast violent weary wet wicked
            wise wonderful worried abandoned anxious awkward bald bold busy cheap cheerful clumsy cosy
            crowded damp dangerous distant dull eager fancy fierce flat foolish forgotten fragile
            frozen funny glorious graceful grand grateful greedy grumpy haunted helpful hidden hollow""",
        "colour": "red green yellow purple white brown silver grey black pink blue crimson scarlet turquoise",
        "adverb": """
            slowly often carefully never suddenly quickly always calmly gladly loudly rarely secretly
            bravely eagerly gently neatly nearly quietly proudly softly sadly seldom simply finally really
            almost usually certainly nervously patiently perfectly politely probably promptly rapidly
            recently safely silently skilfully sleepily smoothly solemnly sometimes soon stubbornly
            swiftly truly twice warmly wearily wildly willingly wisely already anxiously boldly briefly
            brightly cheerfully clearly cleverly clumsily constantly cruelly daily deeply directly easily
            evidently exactly fiercely foolishly frequently generously gracefully greedily happily
            heavily honestly hungrily immediately kindly lazily mostly""",
        "degree": "very rather quite extremely so terribly fairly remarkably surprisingly unusually",
        "went": """
            walked waited danced slept travelled worked played stood hurried wandered laughed arrived sang
            rested disappeared swam sat ran jumped fell shouted whispered cried lived stayed marched
            climbed crawled cycled galloped sailed drove flew hid knelt leaned listened lingered paused
            raced roamed rolled rushed shivered skated sneezed snored spoke stumbled trembled vanished
            yawned camped coughed cheered""",
        "took": """
            carried found painted wanted followed opened noticed lost cleaned remembered bought sold
            watched pushed repaired borrowed counted dropped forgot brought caught covered kept liked
            admired touched washed pulled stole threw loved hated built broke chose collected
            copied crossed decorated described destroyed discovered drew earned emptied examined fetched
            filled fixed folded gathered grabbed guarded guided handled heard hugged ignored inspected
            invented kicked kissed lifted loaded locked measured mended missed moved named needed
            offered ordered owned packed photographed picked placed polished praised prepared preferred
            protected recognised rescued returned saved searched sent shook shared showed sketched
            smelled tasted taught tied trusted unpacked used visited warned weighed wrapped""",
        "take": """
            carry find paint want follow open notice lose clean remember sell watch push repair borrow
            count drop forget bring catch cover keep like admire wash pull steal throw love hate build
            choose collect copy decorate describe destroy discover earn examine fetch fill fix fold
            gather grab guide handle hear hug ignore invent kick kiss lift measure mend miss move need
            offer own pack photograph pick polish praise prepare prefer recognise rescue return save
            search send share show sketch smell taste teach trust use visit warn wrap""",
        "ate": "cooked spilled mixed drank swallowed boiled refused ate stirred served",
        "preposition": """
            near behind under past beside inside across from around towards opposite outside beyond through
            above along beneath below against over into by""",
        "pronoun": "she he someone nobody everybody",
        "group": "we they you i",
        "negation": "don't can't won't didn't couldn't wouldn't shouldn't mustn't",
        "it's": "it's that's she's he's",
        "let's": "let's we'll they'll you'll i'll",
        "o'clock": "o'clock",
        "hour": "seven three ten eleven five nine two six twelve four eight",
        "tens": "twenty fifty thirty sixty ninety seventy eighty forty hundred thousand",
        "day": "monday friday sunday tuesday saturday thursday wednesday",
        "before": "before after until",
        "at": "at",
        "when": "yesterday today tonight later again earlier afterwards lately meanwhile",
        "month": "june october march december april july january september november august may february",
        "in": "in since",
        "and": "and",
        "joining": "but while because although if unless whenever",
        "was": "was looked seemed became felt remained sounded appeared",
        "with": "with without",
    }.items()
}
MAX_VOCABULARY = sum(map(len, WORDS.values()))

# Lower-case names are categories of `WORDS`, upper-case ones are rules; alternatives are equally likely.
RULES: dict[str, list[str]] = {
    "SENTENCE": [
        "WHO went WHERE",
        "WHO went WHERE WHEN",
        "WHO adverb went WHERE",
        "WHO went adverb joining WHO took THING",
        "WHO took THING",
        "WHO took THING WHERE",
        "WHO took THING WHEN",
        "WHO adverb took THING WHERE",
        "WHO took THING joining WHO went WHERE",
        "WHEN WHO took THING WHERE",
        "WHEN WHO went WHERE",
        "THING was DESCRIBED WHEN",
        "WHO was DESCRIBED joining WHO took THING",
        "it's DESCRIBED WHERE",
        "it's DESCRIBED joining WHO took THING",
        "group negation take THING WHERE",
        "group negation take THING joining WHO went adverb",
        "let's take THING WHEN",
        "let's adverb take THING WHERE",
        "WHO ate MEAL WHERE",
        "WHO ate MEAL WHEN",
    ],
    "WHO": [
        "name",
        "name",
        "pronoun",
        "group",
        "determiner role",
        "determiner adjective role",
        "determiner role with THING",
        "determiner animal",
        "determiner adjective animal",
        "determiner colour animal",
        "name and name",
    ],
    "THING": [
        "determiner thing",
        "determiner adjective thing",
        "determiner colour thing",
        "determiner adjective colour thing",
        "determiner thing with hour objects",
        "COUNT objects",
        "COUNT adjective objects",
        "COUNT colour objects",
        "determiner animal",
    ],
    "COUNT": ["hour", "hour", "tens", "tens hour"],
    "MEAL": ["food", "adjective food", "determiner food", "food with food", "determiner adjective food"],
    "DESCRIBED": ["adjective", "degree adjective", "colour"],
    "WHERE": [
        "preposition determiner place",
        "preposition determiner adjective place",
        "preposition determiner thing",
        "preposition determiner role",
        "preposition name",
    ],
    "WHEN": ["when", "before day", "in month", "at hour o'clock", "before hour o'clock"],
}


class Grammar:
    """Sentences over exactly `vocabulary` different words.

    Each category keeps its first words, as many as its share of the whole; at least one.

    Raises:
        UserError: `vocabulary` is below `MIN_VOCABULARY` or above `MAX_VOCABULARY`.
    """

    def __init__(self, vocabulary: int) -> None:
        if not MIN_VOCABULARY <= vocabulary <= MAX_VOCABULARY:
            raise UserError(
                f"data.vocabulary={vocabulary}: must be from {MIN_VOCABULARY} to {MAX_VOCABULARY} words"
            )
        self.words = {category: WORDS[category][:size] for category, size in _shares(vocabulary).items()}

    def sentence(self, rng: random.Random) -> str:
        """Draw one sentence: lower case, no punctuation, `MIN_WORDS` to `MAX_WORDS` words."""
        while True:
            words = self._expand("SENTENCE", rng)
            if MIN_WORDS <= len(words) <= MAX_WORDS:
                return " ".join(words)

    def _expand(self, symbol: str, rng: random.Random) -> list[str]:
        if symbol in self.words:
            return [rng.choice(self.words[symbol])]
        return [word for part in rng.choice(RULES[symbol]).split() for word in self._expand(part, rng)]


def _shares(vocabulary: int) -> dict[str, int]:
    """Words kept of each category: one, plus a share of the rest; largest remainders make it exact."""
    spare = {category: len(words) - 1 for category, words in WORDS.items()}
    left = vocabulary - len(WORDS)
    exact = {category: left * extra / sum(spare.values()) for category, extra in spare.items()}
    sizes = {category: 1 + int(share) for category, share in exact.items()}
    by_remainder = sorted(WORDS, key=lambda category: exact[category] % 1, reverse=True)
    for category in by_remainder[: vocabulary - sum(sizes.values())]:
        sizes[category] += 1
    return sizes
