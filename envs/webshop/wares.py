"""What the generated shop sells: kinds of products with their names, attributes and options. All of it is invented."""

from typing import NamedTuple


class Kind(NamedTuple):
    """One kind of product; texts with several entries are separated by `|`."""

    query: str
    category: str
    levels: str  # of the product category
    names: str  # as in titles
    attributes: str
    options: str  # names of `CHOICES`
    prices: tuple[int, int]


_BRANDS = (
    "Ablewood|Ardenel|Bellmora|Brackwell|Calvane|Corrie & Finch|Dellaro|Driftline|Elmsgate|Everhue|Fennick|Galewin|"
    "Halden|Ivoriel|Jessamy|Kettleby|Larkspan|Lumora|Marrowby|Nordell|Oakhurst Lane|Orvanti|Pemberly|Quillmark|Rosedon|"
    "Sable & Pine|Tamsin|Thornquist|Umberline|Valmere|Westrow|Yarrowfield"
)
BRANDS = tuple(_BRANDS.split("|"))
CHOICES = {  # name of the option as it is shown, and its values
    "color": ("color", "black|white|navy blue|dark green|light pink|burgundy|charcoal grey|khaki|lavender|teal|ivory"),
    "finish": ("color", "walnut|espresso|natural oak|matte black|antique bronze|brushed silver|white|rustic brown"),
    "print": ("pattern name", "floral|plaid|solid|striped|polka dot|geometric|paisley"),
    "clothes": ("size", "x-small|small|medium|large|x-large|xx-large|3x-large"),
    "fit": ("fit type", "men|women|youth"),
    "shoes": ("size", "5|6|7|7.5|8|8.5|9|10|11 wide"),
    "waist": ("size", "26w x 30l|28w x 30l|30w x 32l|32w x 32l|34w x 34l|36w x 34l"),
    "rug": ("size", "2 ft x 3 ft|3 ft x 5 ft|4 ft x 6 ft|5 ft x 8 ft|8 ft x 10 ft"),
    "bed": ("size", "twin|full|queen|king|california king"),
    "curtain": ("size", '42"w x 63"l|52"w x 63"l|52"w x 84"l|52"w x 95"l'),
    "length": ("size", "3 feet|6 feet|10 feet|15 feet|25 feet"),
    "pack": ("number of items", "1 pack|2 pack|3 pack|4 pack|6 pack"),
    "ounces": ("size", "2 ounce|4 fl oz|8 fl oz|12 fl oz|16 fl oz|1 gallon"),
    "pounds": ("size", "8 ounce|12 ounce|1 pound|2 pound|5 pound"),
    "scent": ("scent", "lavender|citrus|vanilla|eucalyptus|rose|unscented|coconut"),
    "shade": ("color", "nude|rose pink|coral|plum|deep red|warm beige|soft brown|champagne"),
    "flavor": ("flavor name", "dark chocolate|peanut butter|sea salt|maple|lemon|raspberry|cinnamon|original"),
    "tea": ("flavor name", "lemon balm|chamomile|ginger lemon|earl grey|hibiscus|jasmine"),
    "storage": ("size", "32gb|64gb|128gb|256gb|512gb"),
    "screen": ("size", "10.1 inch|13.3 inch|14 inch|15.6 inch|17.3 inch"),
    "style": ("style", "basic|deluxe|with case|with remote|starter kit"),
}
_WOMEN, _MEN = "Clothing, Shoes & Jewelry › Women", "Clothing, Shoes & Jewelry › Men"
_HOME, _FACE = "Home & Kitchen", "Beauty & Personal Care › Skin Care"
_FOOD, _TECH = "Grocery & Gourmet Food", "Electronics"
KINDS = (
    Kind("women's sandals", "fashion", f"{_WOMEN} › Shoes › Sandals", "Sandals for Women|Women's Strap Sandals",
         "open toe|ankle strap|non slip|memory foam|rubber sole|arch support|faux leather", "color shoes", (18, 70)),
    Kind("men's hiking boots", "fashion", f"{_MEN} › Shoes › Boots", "Men's Hiking Boots|Trail Boots for Men",
         "water resistant|steel toe|lace up|rubber outsole|moisture wicking|ankle support|leather sole", "color shoes",
         (45, 160)),
    Kind("women's dresses", "fashion", f"{_WOMEN} › Clothing › Dresses", "Women's Midi Dress|Summer Dress for Women",
         "short sleeve|elastic waist|loose fit|hand wash|polyester spandex|long sleeve|button closure", "print clothes",
         (20, 65)),
    Kind("men's shirts", "fashion", f"{_MEN} › Clothing › Shirts", "Men's Casual Shirt|Button Shirt for Men",
         "slim fit|machine wash|classic fit|wrinkle free|regular fit|cotton spandex|moisture wicking", "color clothes",
         (16, 60)),
    Kind("women's jeans", "fashion", f"{_WOMEN} › Clothing › Jeans", "Women's Denim Jeans|Stretch Jeans for Women",
         "high waist|straight leg|wide leg|butt lifting|zipper closure|tummy control|imported zipper", "color waist",
         (25, 80)),
    Kind("t-shirts", "fashion", f"{_MEN} › Novelty › T-Shirts", "Graphic T-Shirt|Crew Neck Tee",
         "needle sleeve|machine wash|classic fit|heathers cotton|quality polyester|tumble dry", "color fit clothes",
         (12, 28)),
    Kind("backpacks", "fashion", "Clothing, Shoes & Jewelry › Luggage › Backpacks", "Laptop Backpack|Travel Backpack",
         "water resistant|usb port|large capacity|leather strap|carrying handle", "color screen", (24, 90)),
    Kind("face moisturizers", "beauty", f"{_FACE} › Face › Moisturizers", "Face Cream|Daily Moisturizer|Night Cream",
         "hyaluronic acid|fragrance free|paraben free|dry skin|oil free|cruelty free", "scent ounces", (9, 48)),
    Kind("shampoos", "beauty", "Beauty & Personal Care › Hair Care › Shampoo", "Shampoo|Repair Shampoo",
         "sulfate free|argan oil|damaged hair|tea tree|color treated|hair growth|certified organic", "scent ounces",
         (8, 36)),
    Kind("lipsticks", "beauty", "Beauty & Personal Care › Makeup › Lips", "Matte Lipstick|Lip Color",
         "long lasting|highly pigmented|cruelty free|easy apply|shea butter|non toxic", "shade pack", (6, 30)),
    Kind("makeup brushes", "beauty", "Beauty & Personal Care › Tools › Makeup Brushes", "Makeup Brush Set|Brush Kit",
         "synthetic hair|eye shadow|rose gold|easy clean|storage case|wood handle", "color style", (8, 40)),
    Kind("body lotions", "beauty", f"{_FACE} › Body › Lotions", "Body Lotion|Body Butter",
         "coconut oil|sensitive skin|alcohol free|shea butter|dead skin|seed oil|dermatologist tested", "scent ounces",
         (7, 32)),
    Kind("toothbrushes", "beauty", "Beauty & Personal Care › Oral Care › Toothbrushes", "Toothbrush|Travel Toothbrush",
         "soft bristles|bad breath|easy use|oral hygiene|sensitive teeth|bpa free", "color pack", (5, 45)),
    Kind("area rugs", "garden", f"{_HOME} › Home Décor › Rugs", "Area Rug|Woven Rug|Soft Carpet",
         "non slip|machine washable|living room|dining room|easy clean|low pile", "print rug", (28, 240)),
    Kind("curtains", "garden", f"{_HOME} › Home Décor › Curtains", "Blackout Curtains|Window Curtains|Drapes",
         "eco friendly|machine washable|stainless steel|living room|super soft|thermal insulated", "color curtain",
         (19, 85)),
    Kind("bed frames", "garden", f"{_HOME} › Furniture › Beds", "Platform Bed Frame|Bed with Headboard",
         "solid wood|box spring|easy assemble|memory foam|heavy duty|storage space|faux leather", "finish bed",
         (110, 480)),
    Kind("table lamps", "garden", f"{_HOME} › Lighting › Lamps", "Table Lamp|Bedside Lamp|Desk Lamp",
         "glass shade|bronze finish|space saving|led bulbs|touch control|living room", "finish style", (22, 130)),
    Kind("candles", "garden", f"{_HOME} › Home Décor › Candles", "Scented Candle|Jar Candle|Candle Set",
         "soy wax|lead free|long lasting|essential oil|gift set|hand poured", "scent pack", (8, 42)),
    Kind("coffee tables", "garden", f"{_HOME} › Furniture › Tables", "Coffee Table|Round Coffee Table",
         "easy assembly|tempered glass|steel frame|storage space|mid century", "finish style", (60, 320)),
    Kind("throw pillows", "garden", f"{_HOME} › Bedding › Pillows", "Throw Pillow|Pillow Cover|Cushion",
         "double sided|super soft|machine washable|home decor|hidden zipper|faux fur", "print pack", (9, 38)),
    Kind("wireless earbuds", "electronics", f"{_TECH} › Headphones › Earbuds", "Wireless Earbuds|Bluetooth Earphones",
         "noise cancelling|fast charging|high definition|stereo sound|water resistant|hands free", "color style",
         (18, 150)),
    Kind("usb cables", "electronics", f"{_TECH} › Accessories › Cables", "USB C Cable|Charging Cable",
         "fast charging|high speed|gold plated|nylon braided|aluminum alloy|heavy duty", "color length", (6, 30)),
    Kind("phone cases", "electronics", "Cell Phones & Accessories › Cases", "Phone Case|Protective Case",
         "wireless charging|tempered glass|non slip|hands free|shock proof|scratch resistant", "color pack", (7, 35)),
    Kind("tablets", "electronics", f"{_TECH} › Computers › Tablets", "Android Tablet|Kids Tablet",
         "quad core|high performance|high resolution|long battery|dual camera|parental control", "color storage",
         (80, 420)),
    Kind("portable speakers", "electronics", f"{_TECH} › Audio › Speakers", "Portable Speaker|Bluetooth Speaker",
         "stereo sound|water resistant|wireless bluetooth|long battery|deep bass|easy carry", "color style", (20, 190)),
    Kind("tv mounts", "electronics", f"{_TECH} › Television › Mounts", "TV Wall Mount|TV Bracket",
         "heavy duty|easy install|full motion|carbon steel|height adjustable|space saving", "screen style", (18, 95)),
    Kind("protein bars", "grocery", f"{_FOOD} › Snack Foods › Bars", "Protein Bars|Snack Bars",
         "gluten free|low carb|high protein|low sugar|non gmo|keto friendly|artificial colors", "flavor pack", (9, 44)),
    Kind("herbal tea", "grocery", f"{_FOOD} › Beverages › Tea", "Herbal Tea Bags|Loose Leaf Tea",
         "caffeine free|usda organic|individually wrapped|sugar free|non gmo|kosher certified", "tea pack", (6, 28)),
    Kind("ground coffee", "grocery", f"{_FOOD} › Beverages › Coffee", "Ground Coffee|Whole Bean Coffee",
         "usda organic|dark roast|fair trade|low acid|single origin|small batch", "flavor pounds", (9, 52)),
    Kind("nuts", "grocery", f"{_FOOD} › Snack Foods › Nuts", "Roasted Almonds|Cashew Nuts|Mixed Nuts",
         "low sodium|dairy free|plant based|resealable bag|non gmo|protein serving", "flavor pounds", (8, 40)),
)  # fmt: skip
