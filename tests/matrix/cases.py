"""Every type that a PostgreSQL may have, with values at its edges.

Values are the text that the type's input function reads. The first two of each are worth most: a case needs two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Case(NamedTuple):
    """A type: its name as `create table` writes it, and what there is to know of it."""

    type: str
    values: Sequence[str]
    setup: str = ""
    """What makes the type, in schema `m`."""
    key: bool = True
    """Whether a column of it can be a key: the type has an operator class for b-trees."""
    equality: str = "="
    """The operator by which the server says that two values are the same; empty if it has none that does."""
    array: bool = True
    since: int = 12
    extension: str = ""
    asks: str = ""
    """A query that fails on a server that lacks what the type `needs`."""
    needs: str = ""

    @property
    def name(self) -> str:
        """What tells it from the other cases; a type may have values that only newer versions know."""
        return f"{self.type} since {self.since}"

    @property
    def bare(self) -> str:
        """The type without its collation, as a cast names it."""
        return self.type.partition(" collate ")[0]

    @property
    def delimiter(self) -> str:
        """What stands between the values in the text of an array."""
        return {"box": ";", "geometry": ":", "geography": ":"}.get(self.type.partition("(")[0], ",")


ICU = """select 'a' < 'b' collate "und-x-icu\""""

CONTROLS = "".join(map(chr, (*range(1, 32), 127)))
PLANES = "".join(chr(plane << 16 | low) for plane in range(17) for low in (0x80, 0x2028, 0xD7FF, 0xFFFD, 0xFFFF))
TEXTS = [
    "a",
    "A",
    "",
    " ",
    "a ",
    CONTROLS,
    PLANES,
    "\\N",
    "\\.",
    "\\",
    "null",
    '"',
    "it's; -- \\'",
    "{},()",
    "\ufeffbom e\u0301 \u00e9 \u202eright to left",
    "line\r\nline\rline\n",
    "%s %% $1 :name",
]
"""Of these only `PLANES` differs by what a server may take: every one takes all of them."""

BYTES = [r"\x00", r"\x", r"\x" + bytes(range(256)).hex(), r"\x5c4e", r"\x5c783030", r"\x0a0d09", r"\xff"]

NUMERICS = [
    "1.0",
    "1.00",
    "0",
    "-0.000",
    "NaN",
    "9" * 1000,
    "-0." + "1234567890" * 100,
    "1e131071",
    "1e-16383",
    "-123456789012345678901234567890.12345678900",
    "10000",
    "0.0001",
]
INFINITE = ["Infinity", "-Infinity"]
FLOATS = ["0", "-0", "NaN", "Infinity", "-Infinity", "0.1", "1e15", "123456.789"]

CASES: list[Case] = [
    Case("bool", ["t", "f"]),
    Case("int2", ["-32768", "32767", "0"]),
    Case("int4", ["-2147483648", "2147483647", "0"]),
    Case("int8", ["-9223372036854775808", "9223372036854775807", "0"]),
    Case("numeric", [*NUMERICS, *INFINITE], since=14),
    Case("numeric(20,5)", ["123456789012345.00000", "-0.00001", "NaN"]),
    Case("numeric(5,-2)", ["1234500", "-100", "0", "NaN"], since=15),
    Case("numeric(3,5)", ["0.00999", "-0.00001", "0"], since=15),
    Case("float4", [*FLOATS, "3.4028235e38", "1e-45", "1.17549435e-38", "16777216", "0.3"]),
    Case("float8", [*FLOATS, "1.7976931348623157e308", "5e-324", "2.2250738585072014e-308", "9007199254740993"]),
    Case("money", ["12.34", "-0.01", "0", "-92233720368547758.08", "92233720368547758.07"]),
    Case("text", TEXTS),
    Case("varchar", TEXTS),
    Case("varchar(5)", ["abcde", "a    ", "", "äöü𝄞\\"]),
    Case("char(5)", ["ab", "abcde", "", " a", "ä𝄞", "\t"]),
    Case("bpchar", ["a", "a  ", "", "   ", "A"]),
    Case('"char"', ["x", "", "\\\\", " ", "\t"]),
    Case('"char"', ["\\377", "\\200"], since=16),  # what came before takes the text of these for a backslash
    Case("name", ["it's", "", "ä" * 31, "N" * 63, "n "]),
    Case("bytea", BYTES),
    Case("bit(8)", ["10110010", "00000000", "11111111"]),
    Case("bit", ["1", "0"]),
    Case("varbit", ["10110", "", "0", "1" * 1000]),
    Case("varbit(4)", ["1011", "", "0"]),
    Case("date", ["infinity", "-infinity", "4714-11-24 BC", "0001-12-31 BC", "0001-01-01", "5874897-12-31"]),
    Case("time", ["00:00:00", "24:00:00", "23:59:59.999999", "00:00:00.000001"]),
    Case("time(3)", ["12:34:56.789", "24:00:00"]),
    Case("timetz", ["24:00:00-15:59", "00:00:00+15:59:59", "12:34:56.7+05:30", "12:34:56.7+05:30:01", "07:04:56.7+00"]),
    Case("timestamp", ["infinity", "-infinity", "4714-11-24 00:00:00 BC", "294276-12-31 23:59:59.999999", "epoch"]),
    Case("timestamp(0)", ["2024-02-29 12:34:57", "0001-01-01 00:00:00 BC"]),
    Case(
        "timestamptz",
        [
            "infinity",
            "-infinity",
            "4714-11-24 00:00:00+00 BC",
            "294276-12-31 23:59:59.999999+00",
            "1883-11-18 12:03:57.000001-04:56:02",
            "2024-03-31 01:00:00+00",
        ],
    ),
    Case(
        "interval",
        [
            "1 day",
            "24:00:00",
            "30 days",
            "1 mon",
            "1 year -2 mons 3 days -04:05:06.789",
            "-1 year +2 mons -3 days +04:05:06.789",
            "00:00:00.000001",
            "-00:00:00.000001",
            "0",
        ],
    ),
    Case(
        "interval",
        ["-178000000 years -2147483648 days", "2562047788:00:54.775807", "-2562047788:00:54.775807"],
        since=15,  # what came before writes these, and does not read them
    ),
    Case("interval(2)", ["00:00:00.25", "-1 mon +00:00:00.01"]),
    Case("interval year to month", ["1 year 2 mons", "-11 mons"]),
    Case("interval day to second(3)", ["3 days 04:05:06.789", "-3 days -00:00:00.001"]),
    Case("interval", ["infinity", "-infinity"], since=17),
    Case("uuid", ["00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff"]),
    Case(
        "json",
        [
            ' { "a" :  1.0, "a": 1 }\n',
            "null",
            '"\\u0000\\ud834\\udd1e\\n\\t\\\\\\/"',
            "1e400",
            "[" * 500 + "]" * 500,
            '"ä𝄞"',
            "[]",
        ],
        key=False,
        equality="",
    ),
    Case(
        "jsonb",
        [
            '{"a": 1.0}',
            '{"a": 1.00}',
            "null",
            '"\\ud834\\udd1e\\n\\t\\\\"',
            "1e400",
            "[" * 500 + "]" * 500,
            '{"b": [null, true, {"": "ü"}], "aa": -0.0}',
            "[]",
            '""',
        ],
    ),
    Case("jsonpath", ['$."a"[*]?(@ > 1)', 'strict $."it\'s \\"q\\""'], key=False, equality=""),
    Case(
        "xml",
        [
            "<a/>",
            "",
            "just text &amp; more",
            "<!-- c --><a b='1'><![CDATA[<&>]]></a><?pi x?>",
            "<a>\n  ä𝄞\t</a>\n",
            '<?xml version="1.0" encoding="ISO-8859-1"?><a/>',
            '<?xml version="1.1" standalone="yes"?><a>&lt;</a>',
            '<!DOCTYPE a [<!ENTITY e "x">]><a/>',
        ],
        key=False,
        equality="",
        asks="select xml '<a/>'",
        needs="a server built with libxml",
    ),
    Case("inet", ["192.168.0.1", "192.168.0.1/24", "192.168.0.1/0", "::", "fe80::1/64", "::ffff:1.2.3.4"]),
    Case("cidr", ["10.0.0.0/8", "::/0", "192.168.0.1/32", "2001:db8::/32"]),
    Case("macaddr", ["08:00:2b:01:02:03", "ff:ff:ff:ff:ff:ff"]),
    Case("macaddr8", ["08:00:2b:01:02:03:04:05", "00:00:00:00:00:00:00:00"]),
    Case(
        "tsvector",
        ["'it''s':1A,3 word:2", "", "a:16383,1B,2C,3D 'b c' '\\\\':4 'ä':9"],
    ),
    Case("tsquery", ["'it''s' & !b:*A | c <-> d", "", "a <5> b:*ABCD & 'x y'"]),
    Case("point", ["(1.5,-2)", "(NaN,Infinity)", "(-0,5e-324)", "(0,0)"], key=False, equality="~="),
    Case("line", ["{1,-1,0}", "{0,1,2.5}", "{-0.1,-1,1e300}"], key=False, equality=""),
    Case("lseg", ["[(1,2),(3,4)]", "[(0,0),(0,0)]", "[(-0,0.1),(1e300,3)]"], key=False),
    Case("box", ["(1,2),(-3,4.5)", "(0,0),(0,0)", "(Infinity,1),(-Infinity,-0)"], key=False, equality="~="),
    Case("path", ["[(1,2),(3,4)]", "((0,0),(1,1),(1,0))", "((0.1,-0))"], key=False, equality=""),
    Case("polygon", ["((0,0),(1,1),(1,0))", "((0,0))", "((0.1,1e300),(-0,5e-324))"], key=False, equality="~="),
    Case("circle", ["<(1,2),3>", "<(0,0),1e-300>", "<(0,0),NaN>", "<(-0,0),Infinity>"], key=False, equality="~="),
    Case("pg_lsn", ["16/B374D848", "FFFFFFFF/FFFFFFFF", "0/0"]),
    Case("xid", ["4294967295", "0", "3"], key=False),
    Case("xid8", ["18446744073709551615", "0"], since=13, key=True),
    Case("cid", ["4294967295", "0"], key=False),
    Case("tid", ["(0,1)", "(4294967295,65535)"], key=True),
    Case("pg_snapshot", ["10:20:10,14,15", "1:1:"], since=13, key=False, equality=""),
    Case("txid_snapshot", ["10:20:10,14,15", "1:1:"], key=False, equality=""),
    Case("oid", ["4294967295", "0", "2147483648"]),
    Case("oidvector", ["1 4294967295", "", "0"]),
    Case("int2vector", ["1 2 3", "", "-32768"], key=False),
    Case(
        "regclass",
        ["pg_class", "-", "4294967295", "m.mood_table", 'm."It\'s, a ""table"""'],
        key=True,
        setup='create table m.mood_table (a int); create table m."It\'s, a ""table""" (a int)',
    ),
    Case("regtype", ["integer", "timestamp with time zone", "-", "4294967295", "integer[]"]),
    Case("regproc", ["now", "-", "4294967295"]),
    Case("regprocedure", ["abs(integer)", "-"]),
    Case("regoper", ["^@", "0"]),
    Case("regoperator", ["+(integer,integer)", "0"]),
    Case("regconfig", ["english", "simple"]),
    Case("regdictionary", ["simple", "-"]),
    Case("regnamespace", ["pg_catalog", "-", "m"]),
    Case("regrole", ["pg_monitor", "-", "postgres"]),
    Case("regcollation", ['"C"', "-"], since=13),
    Case("aclitem", ["=r/postgres", "postgres=arw/postgres"], key=False),
    Case("refcursor", ["a cursor", ""], key=False, equality=""),
    Case("int4range", ["[1,5)", "empty", "(,)", "[-2147483648,2147483647)", "[5,)"]),
    Case("int8range", ["[1,5)", "empty", "(,5)"]),
    Case("numrange", ["[1.10,2.0)", "[1.1,2.00)", "(,)", "(NaN,)", "[0,0]", "empty"]),
    Case("daterange", ["[2024-01-01,)", "empty", "[-infinity,infinity)", "(,infinity)", "[4714-11-24 BC,2024-01-01)"]),
    Case("tsrange", ["[2024-01-01 01:02:03.4,)", "empty", "(-infinity,infinity]"]),
    Case("tstzrange", ["[2024-01-01 01:02:03.4+00,)", "empty", "(-infinity,infinity]"]),
    Case("int4multirange", ["{[1,5),[7,9)}", "{}", "{(,)}"], since=14),
    Case("int8multirange", ["{(,5)}", "{}"], since=14),
    Case("nummultirange", ["{[1.5,2.50)}", "{[1.50,2.5)}", "{}"], since=14),
    Case("datemultirange", ["{[2024-01-01,2024-02-01),[2025-01-01,)}", "{}"], since=14),
    Case("tsmultirange", ["{[2024-01-01 01:02:03.4,2024-01-02)}", "{}"], since=14),
    Case("tstzmultirange", ["{[2024-01-01 01:02:03.4+00,2024-01-02 00:00:00+00)}", "{}"], since=14),
    Case(
        "m.mood",
        ["happy", "it's", "", 'a,b {c} "d"', "back\\slash", "ä" * 31, "%s"],
        "create type m.mood as enum ('happy', 'it''s', '', 'a,b {c} \"d\"', 'back\\slash', '" + "ä" * 31 + "', '%s')",
    ),
    Case("m.exact", ["1.10", "-0.01"], "create domain m.exact as numeric(10,2) check (value < 1000)"),
    Case(
        "m.letters",
        ["ab", "b\\c"],
        "create domain m.word as text check (value <> '');"
        'create domain m.letters as m.word collate "C" check (length(value) < 9)',
    ),
    Case(
        "m.feeling",
        ["sad", "glad"],
        "create type m.base_feeling as enum ('sad', 'glad'); create domain m.feeling as m.base_feeling",
        equality="",
    ),
    Case("m.ints", ["{1,2}", "{}", "{NULL}", "[0:1]={3,4}"], "create domain m.ints as int[] check (value[9] is null)"),
    Case(
        "m.place",
        ["(1,x)", "(,)", '(2,"a,""b\\\\ c")'],
        "create type m.base_place as (n int, t text); create domain m.place as m.base_place",
    ),
    Case(
        "m.pair",
        ['(1,"a,b")', "(,)", '(-1,"")', '(0,"\\"q\\\\ ()")', "(2147483647,null)"],
        'create type m.pair as ("an int" int, t text collate "C")',
    ),
    Case(
        "m.nested",
        ['("(1,x)","{""(2,y)"",NULL}","[0:0]={1.10}",happy2)', "(,,,)"],
        "create type m.mood2 as enum ('happy2'); create type m.inner_pair as (n int, t text);"
        "create type m.nested as (one m.inner_pair, many m.inner_pair[], amounts numeric(5,2)[], mood m.mood2)",
        array=True,
    ),
    Case("m.empty", ["()", "()"], "create type m.empty as ()", key=False),
    Case("m.mood_table", ["(1)", "()"]),
    Case(
        "m.floats",
        ["[1.5,2)", "empty", "[-0,0]", "(,NaN)"],
        "create type m.floats as range (subtype = float8, subtype_diff = float8mi)",
    ),
    Case(
        "m.floatses",
        ["{[1.5,2)}", "{}"],
        "create type m.float_range as range (subtype = float8, multirange_type_name = m.floatses)",
        since=14,
    ),
    Case(
        "m.texts",
        ['["a,b",c)', "empty", '["",)', '["it\'s \\\\","z\\""]'],
        'create type m.texts as range (subtype = text, collation = "C")',
    ),
    Case(
        "m.moods",
        ["[low,high]", "empty", "(,)"],
        "create type m.levels as enum ('low', 'high'); create type m.moods as range (subtype = m.levels)",
    ),
    Case("hstore", ['"a"=>"1", "b"=>NULL', "", '"it\'s \\"q\\""=>"\\\\ , =>"'], extension="hstore"),
    Case("citext", ["a", "A", "", "Ä\\", "it's"], extension="citext"),
    Case("ltree", ["a.b.c", "", "A_1.b2"], extension="ltree"),
    Case("lquery", ["*.a|b*.!c{1,2}", "a"], key=False, equality="", extension="ltree"),
    Case("ltxtquery", ["a & !b*@", "a"], key=False, equality="", extension="ltree"),
    Case("cube", ["(1, 2),(3, 4)", "(0)", "(-0, 1e-300)"], extension="cube"),
    Case("seg", ["1.0 .. 2.00", "~5", "< 1e10"], extension="seg"),
    Case("isbn13", ["978-0-393-04002-9", "978-3-16-148410-0"], extension="isn"),
    Case("query_int", ["1 & 2", "!3 | 4"], key=False, equality="", extension="intarray"),
    Case("lo", ["1", "4294967295"], extension="lo", key=True),
    Case("vector(3)", ["[1,2.5,-3]", "[0,-0,1e-38]"], extension="vector"),
    Case("sparsevec(5)", ["{1:1,3:2.5}/5", "{}/5"], extension="vector"),
    Case("halfvec(2)", ["[1,2.5]", "[0,65504]"], extension="vector"),
    Case(
        "geometry",
        [
            "SRID=4326;POINT(1 2)",
            "POINT ZM (1e300 -0 0.1 3)",
            "POLYGON((0 0,4 0,4 4,0 4,0 0),(1 1,2 1,2 2,1 2,1 1))",
            "GEOMETRYCOLLECTION(POINT EMPTY,LINESTRING(0 0,1 1))",
            "CIRCULARSTRING(0 0,1 1,2 0)",
        ],
        extension="postgis",
    ),
    Case(
        "geometry(PointZ,3857)",
        ["SRID=3857;POINTZ(1 2 3)", "SRID=3857;POINTZ(-1 0 0)"],
        extension="postgis",
    ),
    Case(
        "geography",
        ["POINT(-71.06 42.28)", "SRID=4326;LINESTRING(-110 30,-109 29)", "POLYGON EMPTY"],
        extension="postgis",
    ),
    Case('text collate "C"', ["a", "A", "ä"], array=True),
    Case(
        "text collate m.any_case",
        ["a", "A", "á", "a ", ""],
        "create collation m.any_case (provider = icu, locale = 'und-u-ks-level1', deterministic = false)",
        asks=ICU,
        needs="a server built with ICU",
    ),
    Case(
        "m.caseless",
        ["a", "A", "b"],
        "create collation m.level2 (provider = icu, locale = 'und-u-ks-level2', deterministic = false);"
        "create domain m.caseless as text collate m.level2",
        asks=ICU,
        needs="a server built with ICU",
    ),
]
