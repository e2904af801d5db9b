# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Values and rows between four forms: PostgreSQL's text and binary form, Avro, canonical text.

Everything reads within the bounds it is given and reserves before it writes.
"""

from cpython.mem cimport PyMem_Free, PyMem_RawFree
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport (
    INT16_MAX,
    INT16_MIN,
    INT32_MAX,
    INT32_MIN,
    INT64_MAX,
    INT64_MIN,
    UINT16_MAX,
    int16_t,
    int32_t,
    int64_t,
    uint8_t,
    uint16_t,
    uint32_t,
    uint64_t,
)
from libc.string cimport memchr, memcmp, memcpy, memmove, memset

from codec.buffer cimport *
from codec.layout cimport *

from fractions import Fraction

from schemas.errors import DecodeError, ValueUnsupported


cdef extern from "Python.h":
    double PyOS_string_to_double(const char* text, char** end, object overflow) except? -1.0
    char* PyOS_double_to_string(double value, char format, int precision, int flags, int* type) except NULL
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) except NULL


cdef extern from * nogil:
    """
    #include <float.h>
    #include <math.h>
    #include <stdint.h>
    #include <string.h>

    /* 1 if a byte of the text is not ASCII. A plain loop: compilers make vector code of it. */
    static inline int text_has_high_bytes(const uint8_t *text, size_t size) {
        uint8_t all = 0;
        size_t i;
        for (i = 0; i < size; i++) all |= text[i];
        return all >> 7;
    }

    /* 1 if COPY's text form has to write a byte of the text in another way. */
    static inline int text_needs_escape(const uint8_t *text, size_t size) {
        uint8_t any = 0;
        size_t i;
        for (i = 0; i < size; i++) any |= (uint8_t)((uint8_t)(text[i] - 8) < 6) | (uint8_t)(text[i] == 92);
        return any;
    }

    /* mantissa * 10^exponent, correctly rounded; 0 if this cheap way can't tell. An 80-bit long double holds every
       64-bit integer and every power of ten up to 27 exactly, so one operation rounds once to 64 bits; rounding on
       to 53 bits is right unless those 64 bits lie exactly half-way between two doubles. */
    static inline int decimal_to_double(uint64_t mantissa, int exponent, double *out) {
    #if LDBL_MANT_DIG == 64
        static const long double power[28] = {
            1e0L, 1e1L, 1e2L, 1e3L, 1e4L, 1e5L, 1e6L, 1e7L, 1e8L, 1e9L, 1e10L, 1e11L, 1e12L, 1e13L, 1e14L, 1e15L,
            1e16L, 1e17L, 1e18L, 1e19L, 1e20L, 1e21L, 1e22L, 1e23L, 1e24L, 1e25L, 1e26L, 1e27L};
        long double value;
        uint64_t bits;
        if (exponent < -27 || exponent > 27) return 0;
        value = exponent < 0 ? (long double)mantissa / power[-exponent] : (long double)mantissa * power[exponent];
        memcpy(&bits, &value, 8);
        if ((bits & 0x7FF) == 0x400) return 0;
        *out = (double)value;
        return 1;
    #else
        static const double power[23] = {
            1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15,
            1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};
        if (exponent < -22 || exponent > 22 || mantissa > (UINT64_C(1) << 53)) return 0;
        *out = exponent < 0 ? (double)mantissa / power[-exponent] : (double)mantissa * power[exponent];
        return 1;
    #endif
    }

    /* Values of hexadecimal digits; 0x80 for what is none, so that one look at the sum of all bits finds it. */
    static uint8_t hex_value[256];
    static void fill_hex_values(void) {
        int i;
        for (i = 0; i < 256; i++) hex_value[i] = 0x80;
        for (i = 0; i < 10; i++) hex_value['0' + i] = (uint8_t)i;
        for (i = 0; i < 6; i++) hex_value['a' + i] = hex_value['A' + i] = (uint8_t)(10 + i);
    }

    /* Write the bytes of `pairs` pairs of hexadecimal digits; 0 if there are other characters. */
    static inline int unhex(const uint8_t *text, size_t pairs, uint8_t *out) {
        uint8_t all = 0;
        size_t i;
        for (i = 0; i < pairs; i++) {
            uint8_t high = hex_value[text[2 * i]], low = hex_value[text[2 * i + 1]];
            all |= high | low;
            out[i] = (uint8_t)(high << 4 | low);
        }
        return !(all & 0x80);
    }

    static inline int unhex_uuid(const uint8_t *text, uint8_t *out) {
        return (text[8] == '-') & (text[13] == '-') & (text[18] == '-') & (text[23] == '-')
            & unhex(text, 4, out) & unhex(text + 9, 2, out + 4) & unhex(text + 14, 2, out + 6)
            & unhex(text + 19, 2, out + 8) & unhex(text + 24, 6, out + 10);
    }

    static char hex_pair[256][2];
    static void fill_hex_pairs(void) {
        int i;
        for (i = 0; i < 256; i++) {
            hex_pair[i][0] = "0123456789abcdef"[i >> 4];
            hex_pair[i][1] = "0123456789abcdef"[i & 15];
        }
    }

    static inline void hex_to(const uint8_t *data, size_t size, uint8_t *out) {
        size_t i;
        for (i = 0; i < size; i++) memcpy(out + 2 * i, hex_pair[data[i]], 2);
    }

    static inline void hex_uuid_to(const uint8_t *raw, uint8_t *out) {
        hex_to(raw, 4, out);
        out[8] = out[13] = out[18] = out[23] = '-';
        hex_to(raw + 4, 2, out + 9);
        hex_to(raw + 6, 2, out + 14);
        hex_to(raw + 8, 2, out + 19);
        hex_to(raw + 10, 6, out + 24);
    }

    /* The number of two digits; with anything else a bit above 0x7F is set. */
    static inline unsigned pair_value(const uint8_t *at) {
        unsigned tens = (unsigned)at[0] - '0', ones = (unsigned)at[1] - '0';
        return tens * 10 + ones + ((tens > 9) | (ones > 9)) * 0x1000;
    }

    static const uint16_t days_before_month[13] = {0, 0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334};
    static const uint8_t days_of_month[13] = {0, 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};

    /* Days since 1970 of `YYYY-MM-DD` after year 0 in four digits; 0 if the text is anything else. */
    static inline int plain_days(const uint8_t *text, int64_t *days) {
        unsigned century = pair_value(text), of_century = pair_value(text + 2), year = century * 100 + of_century;
        unsigned month = pair_value(text + 5), day = pair_value(text + 8), leap, past;
        if ((text[4] != '-') | (text[7] != '-') | (century > 99) | (of_century > 99) | (year == 0) | (month - 1 > 11))
            return 0;
        leap = (year % 4 == 0) & ((year % 100 != 0) | (year % 400 == 0));
        if (day - 1 >= days_of_month[month] + (leap & (month == 2))) return 0;
        past = year - 1;
        *days = (int64_t)(past * 365 + past / 4 - past / 100 + past / 400 + days_before_month[month]
            + (leap & (month > 2)) + day) - 719163;
        return 1;
    }

    /* Seconds of `HH:MM:SS`; 0x1000000 or more if the text is anything else or not within a day. */
    static inline unsigned plain_clock(const uint8_t *text) {
        unsigned hours = pair_value(text), minutes = pair_value(text + 3), seconds = pair_value(text + 6);
        unsigned bad = (text[2] != ':') | (text[5] != ':') | (hours > 23) | (minutes > 59) | (seconds > 59);
        return hours * 3600 + minutes * 60 + seconds + bad * 0x1000000;
    }

    static const uint32_t scale_to_micros[7] = {0, 100000, 10000, 1000, 100, 10, 1};

    /* The common form `YYYY-MM-DD HH:MM:SS[.ffffff][+00]`, where nothing can be out of range; 0 for all else. */
    static inline int plain_timestamp(const uint8_t *text, size_t size, int zoned, int64_t *micros) {
        int64_t days;
        unsigned seconds, fraction = 0, all = 0;
        size_t i;
        if (zoned) {
            if (size < 22 || memcmp(text + size - 3, "+00", 3) != 0) return 0;
            size -= 3;
        }
        if (size < 19 || size > 26 || text[10] != ' ' || !plain_days(text, &days)) return 0;
        seconds = plain_clock(text + 11);
        if (seconds >= 0x1000000) return 0;
        if (size > 19) {
            if (size == 20 || text[19] != '.') return 0;
            for (i = 20; i < size; i++) {
                unsigned digit = (unsigned)text[i] - '0';
                all |= digit > 9;
                fraction = fraction * 10 + digit;
            }
            if (all) return 0;
            fraction *= scale_to_micros[size - 20];
        }
        *micros = (days * 86400 + seconds) * 1000000 + fraction;
        return 1;
    }

    static inline float nearest_float(double value) { return (float)value; }

    /* Whether a double lies exactly half-way between two floats: then rounding the double says nothing of how the
       text it came from would be rounded. */
    static inline int is_float_tie(double value) {
        float near = (float)value, other;
        if ((double)near == value || isinf(near)) return 0;
        other = nextafterf(near, value > (double)near ? INFINITY : -INFINITY);
        return ((double)near + (double)other) / 2 == value;
    }
    static inline uint64_t bits_of_double(double value) { uint64_t bits; memcpy(&bits, &value, 8); return bits; }
    static inline uint32_t bits_of_float(float value) { uint32_t bits; memcpy(&bits, &value, 4); return bits; }
    static inline double double_of_bits(uint64_t bits) { double value; memcpy(&value, &bits, 8); return value; }
    static inline float float_of_bits(uint32_t bits) { float value; memcpy(&value, &bits, 4); return value; }
    """
    int text_has_high_bytes(const uint8_t* text, size_t size) noexcept
    int text_needs_escape(const uint8_t* text, size_t size) noexcept
    int decimal_to_double(uint64_t mantissa, int exponent, double* out) noexcept
    void fill_hex_values() noexcept
    void fill_hex_pairs() noexcept
    int unhex(const uint8_t* text, size_t pairs, uint8_t* out) noexcept
    int unhex_uuid(const uint8_t* text, uint8_t* out) noexcept
    void hex_to(const uint8_t* data, size_t size, uint8_t* out) noexcept
    void hex_uuid_to(const uint8_t* raw, uint8_t* out) noexcept
    int plain_days(const uint8_t* text, int64_t* days) noexcept
    int plain_timestamp(const uint8_t* text, size_t size, int zoned, int64_t* micros) noexcept
    float nearest_float(double value) noexcept
    int is_float_tie(double value) noexcept
    uint64_t bits_of_double(double value) noexcept
    uint32_t bits_of_float(float value) noexcept
    double double_of_bits(uint64_t bits) noexcept
    float float_of_bits(uint32_t bits) noexcept
    int isinf(double value) noexcept
    int isnan(double value) noexcept


fill_hex_values()
fill_hex_pairs()

cdef int64_t EPOCH_DAYS = 10957  # from 1970-01-01 to PostgreSQL's 2000-01-01
cdef int64_t EPOCH_MICROS = 946684800000000
cdef int64_t DAY_MICROS = 86400000000
# PostgreSQL's moments, counted from 1970, begin far above what 64 bits can hold, and end 30 years beyond it. Those of
# the last years are carried as numbers below the first: 2^64 is taken away, and 2 added for both infinities' sake.
cdef int64_t FIRST_SECOND = -210866803200  # 4714-11-24 BC
cdef int64_t END_SECOND = 9224318016000  # 294277-01-01
cdef int64_t END_2000 = 9223371331200000000  # the same in microseconds since 2000
cdef uint64_t PAST_INFINITIES = 2
cdef uint64_t NAN64 = 0x7FF8000000000000  # one NaN for all: its sign and payload have no text
cdef uint32_t NAN32 = 0x7FC00000
cdef int MAX_SCALE = 16383  # of PostgreSQL's numeric
cdef int MAX_FLOAT_TEXT = 400


# ------------------------------------------------------------------------------------------------ reading text


cdef inline bint equals(const uint8_t* text, size_t size, const char* word, size_t word_size) noexcept:
    return size == word_size and memcmp(text, word, size) == 0


cdef inline bint is_digit(uint8_t byte) noexcept:
    return <uint8_t>(byte - 48) < 10


cdef int check_utf8(const uint8_t* text, size_t size, int column) except -1:
    cdef size_t i = 0
    cdef uint8_t a, b
    cdef int more
    if not text_has_high_bytes(text, size):
        return 0
    while i < size:
        a = text[i]
        i += 1
        if a < 0x80:
            continue
        if i >= size:
            return unsupported(column, b"text that is not UTF-8")
        b = text[i]
        # The second byte's range excludes overlong forms, surrogates and what lies above U+10FFFF.
        if 0xC2 <= a <= 0xDF:
            more = 1
            if not 0x80 <= b <= 0xBF:
                return unsupported(column, b"text that is not UTF-8")
        elif 0xE0 <= a <= 0xEF:
            more = 2
            if not (0xA0 if a == 0xE0 else 0x80) <= b <= (0x9F if a == 0xED else 0xBF):
                return unsupported(column, b"text that is not UTF-8")
        elif 0xF0 <= a <= 0xF4:
            more = 3
            if not (0x90 if a == 0xF0 else 0x80) <= b <= (0x8F if a == 0xF4 else 0xBF):
                return unsupported(column, b"text that is not UTF-8")
        else:
            return unsupported(column, b"text that is not UTF-8")
        if size - i < <size_t>more:
            return unsupported(column, b"text that is not UTF-8")
        i += 1
        for _ in range(more - 1):
            if text[i] & 0xC0 != 0x80:
                return unsupported(column, b"text that is not UTF-8")
            i += 1
    return 0


cdef inline int parse_integer(const uint8_t* text, size_t size, int64_t low, int64_t high, int64_t* value) except -1:
    cdef uint64_t whole = 0
    cdef uint8_t digit
    cdef size_t i = 0
    cdef bint negative = size > 0 and text[0] == 45
    if negative:
        i = 1
    if i == size or size - i > 19:
        return malformed(b"an integer that is not one")
    while i < size:
        digit = text[i] - 48
        if digit > 9:
            return malformed(b"an integer that is not one")
        whole = whole * 10 + digit
        i += 1
    if negative:
        if whole > <uint64_t>(-(low + 1)) + 1:
            return malformed(b"an integer out of its type's range")
        value[0] = <int64_t>(0 - whole)
    else:
        if whole > <uint64_t>high:
            return malformed(b"an integer out of its type's range")
        value[0] = <int64_t>whole
    return 0


cdef int parse_float(const uint8_t* text, size_t size, double* value) except -1:
    cdef char copy[401]
    cdef size_t i = 0
    cdef uint64_t mantissa = 0
    cdef int digits = 0, significant = 0, dropped = 0, fraction = 0, exponent = 0, sign = 1
    cdef bint negative = False
    if equals(text, size, b"NaN", 3):
        value[0] = double_of_bits(NAN64)
        return 0
    if equals(text, size, b"Infinity", 8):
        value[0] = double_of_bits(0x7FF0000000000000)
        return 0
    if equals(text, size, b"-Infinity", 9):
        value[0] = double_of_bits(0xFFF0000000000000)
        return 0
    if size == 0 or size > <size_t>MAX_FLOAT_TEXT:
        return malformed(b"a float that is not one")
    if text[0] == 45:
        negative = True
        i = 1
    while i < size and is_digit(text[i]):
        digits += 1
        if significant or text[i] != 48:
            if significant < 19:
                mantissa = mantissa * 10 + (text[i] - 48)
                significant += 1
            else:
                dropped += 1
        i += 1
    if i < size and text[i] == 46:
        i += 1
        while i < size and is_digit(text[i]):
            digits += 1
            if significant or text[i] != 48:
                if significant < 19:
                    mantissa = mantissa * 10 + (text[i] - 48)
                    significant += 1
                    fraction += 1
                else:
                    dropped += 1
            else:
                fraction += 1
            i += 1
    if digits == 0:
        return malformed(b"a float that is not one")
    if i < size and (text[i] == 101 or text[i] == 69):
        i += 1
        if i < size and (text[i] == 45 or text[i] == 43):
            sign = -1 if text[i] == 45 else 1
            i += 1
        if i == size or size - i > 5:
            return malformed(b"a float that is not one")
        while i < size and is_digit(text[i]):
            exponent = exponent * 10 + (text[i] - 48)
            i += 1
    if i != size:
        return malformed(b"a float that is not one")
    if mantissa == 0:
        value[0] = double_of_bits(0x8000000000000000 if negative else 0)
        return 0
    if dropped == 0 and decimal_to_double(mantissa, sign * exponent - fraction, value):
        if negative:
            value[0] = -value[0]
        return 0
    memcpy(copy, text, size)
    copy[size] = 0
    value[0] = PyOS_string_to_double(copy, NULL, OverflowError)
    return 0


cdef int put_double(const uint8_t* text, size_t size, Buffer* out) except -1:
    cdef double value = 0
    try:
        parse_float(text, size, &value)
    except OverflowError:
        malformed(b"a float out of its type's range")
    put_bits64(out, bits_of_double(value))
    return 0


cdef int put_single(const uint8_t* text, size_t size, Buffer* out) except -1:
    cdef double value = 0
    cdef float single
    try:
        parse_float(text, size, &value)
    except OverflowError:
        malformed(b"a float out of its type's range")
    single = nearest_float(value)
    if is_float_tie(value):
        single = settle_tie(text[:size].decode("ascii"), value)
    if isinf(single) and not isinf(value):
        return malformed(b"a float out of its type's range")
    put_bits32(out, NAN32 if isnan(value) else bits_of_float(single))
    return 0


cdef extern from *:
    """
    static inline float float_after(double value, int up) {
        /* The neighbouring float above or below a double that lies between two of them. */
        float near = (float)value;
        if (up ? (double)near > value : (double)near < value) return near;
        return nextafterf(near, up ? INFINITY : -INFINITY);
    }
    """
    float float_after(double value, int up) noexcept


cdef float settle_tie(str text, double value) except? -1.0:
    true, tie = Fraction(text), Fraction(value)
    if true == tie:
        return nearest_float(value)
    return float_after(value, true > tie)


cdef inline void put_bits64(Buffer* out, uint64_t bits) noexcept:
    store32_little(out.data + out.size, <uint32_t>bits)
    store32_little(out.data + out.size + 4, <uint32_t>(bits >> 32))
    out.size += 8


cdef inline void put_bits32(Buffer* out, uint32_t bits) noexcept:
    store32_little(out.data + out.size, bits)
    out.size += 4


cdef inline int64_t days_of(int64_t year, int month, int day) noexcept:
    """Days since 1970-01-01 in the proleptic Gregorian calendar; year 0 is 1 BC."""
    cdef int64_t era, of_era, of_year
    if month <= 2:
        year -= 1
    era = (year if year >= 0 else year - 399) / 400
    of_era = year - era * 400
    of_year = (153 * (month - 3 if month > 2 else month + 9) + 2) / 5 + day - 1
    return era * 146097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719468


cdef inline bint is_leap(int64_t year) noexcept:
    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)


cdef inline int two_digits(const uint8_t* at) noexcept:
    """Their number, or something above 99."""
    cdef uint8_t tens = at[0] - 48, ones = at[1] - 48
    if tens > 9 or ones > 9:
        return 100
    return tens * 10 + ones


cdef int parse_days(const uint8_t** text, const uint8_t* end, bint before_christ, int64_t* days) except -1:
    """Read `YYYY-MM-DD`, four to seven digits of year, and leave `text` behind it."""
    cdef const uint8_t* at = text[0]
    cdef int64_t year = 0
    cdef int digits = 0, month, day, last
    while at < end and is_digit(at[0]) and digits < 8:
        year = year * 10 + (at[0] - 48)
        digits += 1
        at += 1
    if digits < 4 or digits > 7 or end - at < 6 or at[0] != 45 or at[3] != 45 or year == 0:
        return malformed(b"a date that is not one")
    month = two_digits(at + 1)
    day = two_digits(at + 4)
    if before_christ:
        year = 1 - year
    if month < 1 or month > 12:
        return malformed(b"a date that is not one")
    if month == 2:
        last = 29 if is_leap(year) else 28
    else:
        last = 30 if month == 4 or month == 6 or month == 9 or month == 11 else 31
    if day < 1 or day > last:
        return malformed(b"a date that is not one")
    days[0] = days_of(year, month, day)
    text[0] = at + 6
    return 0


cdef int parse_clock(const uint8_t** text, const uint8_t* end, int64_t* micros) except -1:
    """Read `HH:MM:SS[.ffffff]`, up to 24:00:00, and leave `text` behind it."""
    cdef const uint8_t* at = text[0]
    cdef int hours, minutes, seconds, digits = 0
    cdef int64_t fraction = 0
    if end - at < 8 or at[2] != 58 or at[5] != 58:
        return malformed(b"a time that is not one")
    hours = two_digits(at)
    minutes = two_digits(at + 3)
    seconds = two_digits(at + 6)
    if hours > 24 or minutes > 59 or seconds > 59:
        return malformed(b"a time that is not one")
    at += 8
    if at < end and at[0] == 46:
        at += 1
        while at < end and is_digit(at[0]):
            if digits == 6:
                return malformed(b"a time finer than microseconds")
            fraction = fraction * 10 + (at[0] - 48)
            digits += 1
            at += 1
        if digits == 0:
            return malformed(b"a time that is not one")
        while digits < 6:
            fraction *= 10
            digits += 1
    micros[0] = (<int64_t>hours * 3600 + minutes * 60 + seconds) * 1000000 + fraction
    if micros[0] > DAY_MICROS:
        return malformed(b"a time that is not one")
    text[0] = at
    return 0


cdef inline bint strip_bc(const uint8_t* text, const uint8_t** end) noexcept:
    cdef const uint8_t* tail = end[0] - 3
    if end[0] - text > 3 and tail[0] == 32 and tail[1] == 66 and tail[2] == 67:
        end[0] = tail
        return True
    return False


cdef int parse_date(const uint8_t* text, size_t size, int column, int64_t* value) except -1:
    cdef const uint8_t* end = text + size
    cdef bint before_christ
    if size == 10 and plain_days(text, value):
        return 0
    if equals(text, size, b"infinity", 8):
        value[0] = INT32_MAX
        return 0
    if equals(text, size, b"-infinity", 9):
        value[0] = INT32_MIN
        return 0
    before_christ = strip_bc(text, &end)
    parse_days(&text, end, before_christ, value)
    if text != end:
        return malformed(b"a date that is not one")
    if value[0] >= INT32_MAX or value[0] <= INT32_MIN:
        return unsupported(column, b"a date beyond 32 bits of days since 1970")
    return 0


cdef int parse_timestamp(const uint8_t* text, size_t size, bint zoned, int column, int64_t* value) except -1:
    cdef const uint8_t* end = text + size
    cdef bint before_christ
    cdef int64_t days, micros, seconds, offset = 0
    cdef int part, sign, scale
    if plain_timestamp(text, size, zoned, value):
        return 0
    if equals(text, size, b"infinity", 8):
        value[0] = INT64_MAX
        return 0
    if equals(text, size, b"-infinity", 9):
        value[0] = INT64_MIN
        return 0
    before_christ = strip_bc(text, &end)
    parse_days(&text, end, before_christ, &days)
    if text == end or text[0] != 32:
        return malformed(b"a timestamp that is not one")
    text += 1
    parse_clock(&text, end, &micros)
    if zoned:
        if text == end or (text[0] != 43 and text[0] != 45):
            return malformed(b"a timestamp without its zone")
        sign = 1 if text[0] == 43 else -1
        text += 1
        scale = 3600
        while True:
            if end - text < 2:
                return malformed(b"a timestamp that is not one")
            part = two_digits(text)
            if part > 59:
                return malformed(b"a timestamp that is not one")
            offset += part * scale
            text += 2
            if text == end or scale == 1:
                break
            if text[0] != 58:
                return malformed(b"a timestamp that is not one")
            text += 1
            scale /= 60
        offset *= sign
    if text != end:
        return malformed(b"a timestamp that is not one")
    seconds = days * 86400 + micros / 1000000 - offset
    micros %= 1000000
    if seconds < FIRST_SECOND or seconds >= END_SECOND:
        return unsupported(column, b"a timestamp that PostgreSQL does not have")
    value[0] = carried(<uint64_t>seconds * 1000000 + <uint64_t>micros, seconds < 0)
    return 0


cdef inline int64_t carried(uint64_t micros, bint negative) noexcept:
    """Return what a record holds of a moment; `micros` since 1970, negative ones as two's complement."""
    return <int64_t>(micros if negative or micros < <uint64_t>INT64_MAX else micros + PAST_INFINITIES)


cdef inline bint is_beyond(int64_t value) noexcept:
    """Whether a record's number stands for a moment that 64 bits can't hold: its microseconds are
    `<uint64_t>value - PAST_INFINITIES`."""
    return value < FIRST_SECOND * 1000000


cdef int check_numeric(const uint8_t* text, size_t size) except -1:
    cdef size_t i = 0, digits = 0
    if size > 0 and text[0] == 45:
        i = 1
    while i < size and is_digit(text[i]):
        i += 1
        digits += 1
    if i < size and text[i] == 46 and digits:
        i += 1
        digits = 0
        while i < size and is_digit(text[i]):
            i += 1
            digits += 1
    if i == size and digits:
        return 0
    if equals(text, size, b"NaN", 3) or equals(text, size, b"Infinity", 8) or equals(text, size, b"-Infinity", 9):
        return 0
    return malformed(b"a numeric that is not one")


cdef int put_unhexed(const uint8_t* text, size_t size, Buffer* out) except -1:
    """Append Avro bytes of `\\x` and hexadecimal digits."""
    if size < 2 or text[0] != 92 or text[1] != 120 or size % 2:
        return malformed(b"bytes that are not in hexadecimal form")
    size = (size - 2) / 2
    reserve(out, size + 10)
    put_long(out, <int64_t>size)
    if not unhex(text + 2, size, out.data + out.size):
        return malformed(b"bytes that are not in hexadecimal form")
    out.size += size
    return 0


cdef int parse_uuid(const uint8_t* text, size_t size, uint8_t* raw) except -1:
    if size != 36 or not unhex_uuid(text, raw):
        return malformed(b"a uuid that is not one")
    return 0


cdef inline void write_uuid(const uint8_t* raw, Buffer* out) noexcept:
    hex_uuid_to(raw, out.data + out.size)
    out.size += 36


cdef inline int put_text(const uint8_t* text, size_t size, Buffer* out) except -1:
    reserve(out, size + 10)
    put_long(out, size)
    put(out, text, size)
    return 0


cdef int value_from_text(int kind, int column, const uint8_t* text, size_t size, Buffer* out) except -1:
    """Append the Avro form of a value in PostgreSQL's text form, which is the canonical one too."""
    cdef int64_t value
    cdef uint8_t raw[16]
    if kind == TEXT or kind == JSONB or kind == OTHER:
        check_utf8(text, size, column)
        return put_text(text, size, out)
    if kind == NUMERIC:
        check_numeric(text, size)
        return put_text(text, size, out)
    if kind == BYTES:
        return put_unhexed(text, size, out)
    reserve(out, 48)
    if kind == INT64:
        parse_integer(text, size, INT64_MIN, INT64_MAX, &value)
    elif kind == INT32:
        parse_integer(text, size, INT32_MIN, INT32_MAX, &value)
    elif kind == INT16:
        parse_integer(text, size, INT16_MIN, INT16_MAX, &value)
    elif kind == TIMESTAMPTZ or kind == TIMESTAMP:
        parse_timestamp(text, size, kind == TIMESTAMPTZ, column, &value)
    elif kind == DATE:
        parse_date(text, size, column, &value)
    elif kind == BOOL:
        if size != 1 or (text[0] != 116 and text[0] != 102):
            return malformed(b"a boolean that is not one")
        put_byte(out, text[0] == 116)
        return 0
    elif kind == FLOAT64:
        return put_double(text, size, out)
    elif kind == FLOAT32:
        return put_single(text, size, out)
    elif kind == UUID:
        parse_uuid(text, size, raw)
        put_long(out, 36)
        write_uuid(raw, out)
        return 0
    else:  # TIME
        return put_clock(text, size, out)
    put_long(out, value)
    return 0


cdef int put_clock(const uint8_t* text, size_t size, Buffer* out) except -1:
    cdef const uint8_t* at = text
    cdef int64_t micros
    parse_clock(&at, text + size, &micros)
    if at != text + size:
        return malformed(b"a time that is not one")
    put_long(out, micros)
    return 0


# ---------------------------------------------------------------------------------------------- reading binary


cdef int put_numeric(const uint8_t* data, size_t size, Buffer* out) except -1:
    """Append the Avro string of PostgreSQL's binary numeric: the text that PostgreSQL itself would print."""
    cdef int count, weight, sign, scale, i, digit, cut
    cdef size_t length
    cdef uint8_t* at
    cdef const uint8_t* digits
    if size < 8:
        return malformed(b"a numeric that is cut off")
    count = load16(data)
    weight = <int16_t>load16(data + 2)
    sign = load16(data + 4)
    scale = load16(data + 6)
    if size != <size_t>(8 + 2 * count):
        return malformed(b"a numeric of another length than it says")
    if sign == 0xC000:
        return put_text(<const uint8_t*>b"NaN", 3, out)
    if sign == 0xD000:
        return put_text(<const uint8_t*>b"Infinity", 8, out)
    if sign == 0xF000:
        return put_text(<const uint8_t*>b"-Infinity", 9, out)
    if (sign != 0 and sign != 0x4000) or scale > MAX_SCALE:
        return malformed(b"a numeric with an unknown sign or scale")
    digits = data + 8
    for i in range(count):
        if load16(digits + 2 * i) > 9999:
            return malformed(b"a numeric with a digit that is not one")
    while count > 0 and load16(digits) == 0:
        digits += 2
        count -= 1
        weight -= 1
    if count == 0:
        sign = 0
        weight = 0
    # Length before the text, so the text is written behind the longest length there may be, and moved.
    length = 16 + (<size_t>(weight + 1) * 4 if weight >= 0 else 1) + scale + 4
    reserve(out, length + 10)
    at = out.data + out.size + 10
    if sign:
        at[0] = 45
        at += 1
    if weight < 0:
        at[0] = 48
        at += 1
    else:
        for i in range(weight + 1):
            digit = load16(digits + 2 * i) if i < count else 0
            if i == 0:
                if digit >= 1000:
                    at[0] = <uint8_t>(48 + digit / 1000)
                    at += 1
                if digit >= 100:
                    at[0] = <uint8_t>(48 + digit / 100 % 10)
                    at += 1
                if digit >= 10:
                    at[0] = <uint8_t>(48 + digit / 10 % 10)
                    at += 1
                at[0] = <uint8_t>(48 + digit % 10)
                at += 1
            else:
                at[0] = <uint8_t>(48 + digit / 1000)
                at[1] = <uint8_t>(48 + digit / 100 % 10)
                at[2] = <uint8_t>(48 + digit / 10 % 10)
                at[3] = <uint8_t>(48 + digit % 10)
                at += 4
    if scale > 0:
        at[0] = 46
        at += 1
        i = weight + 1
        cut = 0
        while cut < scale:
            digit = load16(digits + 2 * i) if 0 <= i < count else 0
            at[0] = <uint8_t>(48 + digit / 1000)
            at[1] = <uint8_t>(48 + digit / 100 % 10)
            at[2] = <uint8_t>(48 + digit / 10 % 10)
            at[3] = <uint8_t>(48 + digit % 10)
            at += 4
            cut += 4
            i += 1
        at -= cut - scale
    length = at - (out.data + out.size + 10)
    put_long(out, length)
    memmove(out.data + out.size, at - length, length)
    out.size += length
    return 0


cdef int value_from_binary(int kind, int column, const uint8_t* data, size_t size, Buffer* out) except -1:
    """Append the Avro form of a value in PostgreSQL's binary form."""
    cdef int64_t value
    if kind == TEXT or kind == OTHER:
        check_utf8(data, size, column)
        return put_text(data, size, out)
    if kind == NUMERIC:
        return put_numeric(data, size, out)
    if kind == BYTES:
        return put_text(data, size, out)
    if kind == JSONB:
        if size < 1 or data[0] != 1:
            return malformed(b"a jsonb of an unknown version")
        check_utf8(data + 1, size - 1, column)
        return put_text(data + 1, size - 1, out)
    reserve(out, 48)
    if kind == INT64:
        if size != 8:
            return malformed(b"a binary value of another length than its type's")
        value = <int64_t>load64(data)
    elif kind == INT32:
        if size != 4:
            return malformed(b"a binary value of another length than its type's")
        value = <int32_t>load32(data)
    elif kind == INT16:
        if size != 2:
            return malformed(b"a binary value of another length than its type's")
        value = <int16_t>load16(data)
    elif kind == TIMESTAMP or kind == TIMESTAMPTZ:
        if size != 8:
            return malformed(b"a binary value of another length than its type's")
        value = <int64_t>load64(data)
        if value != INT64_MAX and value != INT64_MIN:
            if value < FIRST_SECOND * 1000000 - EPOCH_MICROS or value >= END_2000:
                return unsupported(column, b"a timestamp that PostgreSQL does not have")
            value = carried(<uint64_t>value + <uint64_t>EPOCH_MICROS, value < -EPOCH_MICROS)
    elif kind == DATE:
        if size != 4:
            return malformed(b"a binary value of another length than its type's")
        value = <int32_t>load32(data)
        if value != INT32_MAX and value != INT32_MIN:
            value += EPOCH_DAYS
            if value >= INT32_MAX:
                return unsupported(column, b"a date beyond 32 bits of days since 1970")
    elif kind == TIME:
        if size != 8:
            return malformed(b"a binary value of another length than its type's")
        value = <int64_t>load64(data)
        if value < 0 or value > DAY_MICROS:
            return malformed(b"a time out of the day")
    elif kind == BOOL:
        if size != 1 or data[0] > 1:
            return malformed(b"a boolean that is not one")
        put_byte(out, data[0])
        return 0
    elif kind == FLOAT64:
        if size != 8:
            return malformed(b"a binary value of another length than its type's")
        value = <int64_t>load64(data)
        put_bits64(out, NAN64 if isnan(double_of_bits(<uint64_t>value)) else <uint64_t>value)
        return 0
    elif kind == FLOAT32:
        if size != 4:
            return malformed(b"a binary value of another length than its type's")
        value = load32(data)
        put_bits32(out, NAN32 if isnan(float_of_bits(<uint32_t>value)) else <uint32_t>value)
        return 0
    else:  # UUID
        if size != 16:
            return malformed(b"a binary value of another length than its type's")
        put_long(out, 36)
        write_uuid(data, out)
        return 0
    put_long(out, value)
    return 0


# ------------------------------------------------------------------------------------------------ rows to Avro


cdef int put_row(Layout layout, const Field* fields, Buffer* out) except -1:
    """Append a row: every column a union with null first. Unchanged columns are null."""
    cdef int i
    cdef int width = layout.width
    cdef const uint8_t* kind = layout.kind
    for i in range(width):
        reserve(out, 1)
        if fields[i].tag == 116:
            put_byte(out, 2)
            value_from_text(kind[i], i, fields[i].data, fields[i].size, out)
        elif fields[i].tag == 98:
            put_byte(out, 2)
            value_from_binary(kind[i], i, fields[i].data, fields[i].size, out)
        else:
            put_byte(out, 0)
    return 0


cdef int put_prefix(uint32_t schema_id, Buffer* out) except -1:
    reserve(out, 5)
    put_byte(out, 0)
    put32(out, schema_id)
    return 0


cdef int put_key_of(Layout layout, const Field* fields, Buffer* out) except -1:
    """Append a record's key, with its prefix, of a row's fields."""
    cdef int i, column
    put_prefix(layout.id + 1, out)
    for i in range(layout.key_width):
        column = layout.key_column[i]
        if fields[column].tag == 116:
            value_from_text(layout.kind[column], column, fields[column].data, fields[column].size, out)
        elif fields[column].tag == 98:
            value_from_binary(layout.kind[column], column, fields[column].data, fields[column].size, out)
        else:
            return malformed(b"a key column without a value")
    return 0


cdef int fields_of(Layout layout, object row, Field* fields) except -1:
    """Point `fields` at the canonical texts of a row, which have to live longer."""
    cdef int i
    cdef Py_ssize_t size
    if len(row) != layout.width:
        raise DecodeError(f"a row of {len(row)} values for {layout.width} columns")
    for i in range(layout.width):
        value = row[i]
        if value is None:
            fields[i].tag = 110
            continue
        try:
            fields[i].data = <const uint8_t*>PyUnicode_AsUTF8AndSize(value, &size)
        except UnicodeEncodeError:
            raise ValueUnsupported(f"column {i}: text that is not UTF-8") from None
        fields[i].size = <size_t>size
        fields[i].tag = 116
    return 0


# ---------------------------------------------------------------------------------------------- reading records


cdef int get_prefix(Reader* reader, uint32_t schema_id) except -1:
    if left(reader) < 5 or reader.at[0] != 0:
        return malformed(b"a record without magic byte and schema id")
    if load32(reader.at + 1) != schema_id:
        raise DecodeError(f"a record of schema {load32(reader.at + 1)}, where one of {schema_id} was expected")
    reader.at += 5
    return 0


cdef int get_head(Reader* reader, Head* head) except -1:
    get_long(reader, &head.op)
    get_long(reader, &head.epoch)
    get_long(reader, &head.position)
    get_long(reader, &head.xid)
    get_long(reader, &head.ordinal)
    get_long(reader, &head.commit_time)
    if head.op < OP_INSERT or head.op > OP_RESTART:
        return malformed(b"an operation that does not exist")
    return 0


cdef int get_unchanged(Layout layout, Reader* reader, uint8_t* flags) except -1:
    """Return how many columns are unchanged; only then set `flags`, one byte a column, all of them."""
    cdef int64_t items, column, bytes_of_block
    cdef int found = 0
    if reader.at < reader.end and reader.at[0] == 0:
        reader.at += 1
        return 0
    memset(flags, 0, layout.width)
    while True:
        get_long(reader, &items)
        if items == 0:
            return found
        if items < 0:
            if items < -layout.width:
                return malformed(b"more unchanged columns than there are columns")
            items = -items
            get_long(reader, &bytes_of_block)
        if items > layout.width:
            return malformed(b"more unchanged columns than there are columns")
        while items > 0:
            get_long(reader, &column)
            if column < 0 or column >= layout.width or flags[column]:
                return malformed(b"an unchanged column that does not exist, or one named twice")
            flags[column] = 1
            found += 1
            items -= 1


cdef int skip_value(int kind, Reader* reader) except -1:
    cdef int64_t number
    cdef const uint8_t* data
    cdef size_t size
    if kind >= BYTES:
        return get_bytes(reader, &data, &size)
    if kind == FLOAT64:
        size = 8
    elif kind == FLOAT32:
        size = 4
    elif kind == BOOL:
        size = 1
    else:
        return get_long(reader, &number)
    if left(reader) < size:
        return malformed(b"a record ends inside a value")
    reader.at += size
    return 0


cdef int skip_row(Layout layout, Reader* reader) except -1:
    cdef int i
    for i in range(layout.width):
        if get_branch(reader):
            skip_value(layout.kind[i], reader)
    return 0


cdef int key_of_row(Layout layout, Reader* reader, Buffer* out) except -1:
    """Append the Avro key (without prefix) of a row in Avro: the same bytes, less the union branches."""
    cdef const uint8_t* start
    cdef Reader columns
    cdef int i, at = 0, column
    cdef bint ordered = True
    for i in range(1, layout.key_width):
        if layout.key_column[i] < layout.key_column[i - 1]:
            ordered = False
    if ordered:
        for i in range(layout.width):
            if get_branch(reader):
                start = reader.at
                skip_value(layout.kind[i], reader)
                if layout.in_key[i]:
                    append(out, start, reader.at - start)
            elif layout.in_key[i]:
                return malformed(b"a key column without a value")
        return 0
    for at in range(layout.key_width):
        columns = reader[0]
        column = layout.key_column[at]
        for i in range(column + 1):
            if get_branch(&columns):
                start = columns.at
                skip_value(layout.kind[i], &columns)
                if i == column:
                    append(out, start, columns.at - start)
            elif i == column:
                return malformed(b"a key column without a value")
    return skip_row(layout, reader)


# ------------------------------------------------------------------------------------------- Avro to other forms


cdef inline void write_two(Buffer* out, int number) noexcept:
    out.data[out.size] = <uint8_t>(48 + number / 10)
    out.data[out.size + 1] = <uint8_t>(48 + number % 10)
    out.size += 2


cdef void write_unsigned(Buffer* out, uint64_t number, int least) noexcept:
    cdef uint8_t digits[20]
    cdef int i = 20
    while number or least > 0:
        i -= 1
        digits[i] = <uint8_t>(48 + number % 10)
        number /= 10
        least -= 1
    put(out, digits + i, 20 - i)


cdef inline void write_integer(Buffer* out, int64_t number) noexcept:
    if number < 0:
        put_byte(out, 45)
        write_unsigned(out, 0 - <uint64_t>number, 1)
    else:
        write_unsigned(out, <uint64_t>number, 1)


cdef void write_days(Buffer* out, int64_t days, bint* before_christ) noexcept:
    cdef int64_t era, year
    cdef int of_era, of_year, month
    days += 719468
    era = (days if days >= 0 else days - 146096) / 146097
    days -= era * 146097
    of_era = <int>((days - days / 1460 + days / 36524 - days / 146096) / 365)
    of_year = <int>(days - (365 * of_era + of_era / 4 - of_era / 100))
    month = (5 * of_year + 2) / 153
    year = era * 400 + of_era + (1 if month >= 10 else 0)
    before_christ[0] = year <= 0
    write_unsigned(out, <uint64_t>(1 - year if year <= 0 else year), 4)
    put_byte(out, 45)
    write_two(out, month + 3 if month < 10 else month - 9)
    put_byte(out, 45)
    write_two(out, of_year - (153 * month + 2) / 5 + 1)


cdef void write_clock(Buffer* out, int64_t micros) noexcept:
    cdef int seconds = <int>(micros / 1000000), fraction = <int>(micros % 1000000), digit = 100000
    write_two(out, seconds / 3600)
    put_byte(out, 58)
    write_two(out, seconds / 60 % 60)
    put_byte(out, 58)
    write_two(out, seconds % 60)
    if fraction:
        put_byte(out, 46)
        while fraction:
            put_byte(out, <uint8_t>(48 + fraction / digit))
            fraction %= digit
            digit /= 10


cdef int write_digits(Buffer* out, const char* text, int limit) except -1:
    """Write a number of C's form `[-]d.ddde[-]xx` or `[-]ddd.ddd` as PostgreSQL does: plain from 1e-4 to below
    10 to the power of `limit`."""
    cdef uint8_t digits[40]
    cdef int count = 0, point = -1, exponent = 0, i, sign = 1
    cdef const char* at = text
    if at[0] == 45:
        put_byte(out, 45)
        at += 1
    while at[0] and at[0] != 101:
        if at[0] == 46:
            point = count
        elif count < 40:
            digits[count] = <uint8_t>at[0]
            count += 1
        at += 1
    if point < 0:
        point = count
    if at[0] == 101:
        at += 1
        if at[0] == 45:
            sign = -1
            at += 1
        elif at[0] == 43:
            at += 1
        while at[0]:
            exponent = exponent * 10 + (at[0] - 48)
            at += 1
    point += sign * exponent
    i = 0
    while i < count - 1 and digits[i] == 48:
        i += 1
        point -= 1
    while count - 1 > i and digits[count - 1] == 48:
        count -= 1
    memmove(digits, digits + i, count - i)
    count -= i
    if count == 1 and digits[0] == 48:
        put_byte(out, 48)
        return 0
    exponent = point - 1
    if -4 <= exponent < limit:
        if point <= 0:
            put(out, b"0.", 2)
            for i in range(-point):
                put_byte(out, 48)
            put(out, digits, count)
        elif point >= count:
            put(out, digits, count)
            for i in range(point - count):
                put_byte(out, 48)
        else:
            put(out, digits, point)
            put_byte(out, 46)
            put(out, digits + point, count - point)
        return 0
    put_byte(out, digits[0])
    if count > 1:
        put_byte(out, 46)
        put(out, digits + 1, count - 1)
    put_byte(out, 101)
    put_byte(out, 45 if exponent < 0 else 43)
    write_unsigned(out, <uint64_t>(-exponent if exponent < 0 else exponent), 2)
    return 0


cdef int write_double(Buffer* out, double value, bint single) except -1:
    cdef char* text
    cdef int precision
    if isnan(value):
        put(out, b"NaN", 3)
        return 0
    if isinf(value):
        put(out, b"Infinity" if value > 0 else b"-Infinity", 8 if value > 0 else 9)
        return 0
    if not single:
        text = PyOS_double_to_string(value, 114, 0, 0, NULL)
        write_digits(out, text, 15)
        PyMem_Free(text)
        return 0
    # Up to six digits the closest text is always read back, except of the smallest numbers, which have fewer bits.
    for precision in range(0 if -1.2e-38 < value < 1.2e-38 else 5, 9):
        text = PyOS_double_to_string(value, 101, precision, 0, NULL)
        if precision == 8 or nearest_float(PyOS_string_to_double(text, NULL, OverflowError)) == nearest_float(value):
            write_digits(out, text, 6)
            PyMem_Free(text)
            return 0
        PyMem_Free(text)
    return 0


cdef int get_number(int kind, Reader* reader, int64_t* value) except -1:
    """Read an integer of Avro that carries `kind`, and refuse what is out of the type's range."""
    get_long(reader, value)
    if kind == INT16:
        if value[0] > INT16_MAX or value[0] < INT16_MIN:
            return malformed(b"an integer out of its type's range")
    elif kind == INT32 or kind == DATE:
        if value[0] > INT32_MAX or value[0] < INT32_MIN:
            return malformed(b"an integer out of its type's range")
    elif kind == TIME:
        if value[0] < 0 or value[0] > DAY_MICROS:
            return malformed(b"a time out of the day")
    return 0


cdef int get_bits(Reader* reader, int size, uint64_t* bits) except -1:
    if left(reader) < <size_t>size:
        return malformed(b"a record ends inside a value")
    bits[0] = load32_little(reader.at)
    if size == 8:
        bits[0] |= <uint64_t>load32_little(reader.at + 4) << 32
    reader.at += size
    return 0


cdef int get_bool(Reader* reader) except -1:
    if reader.at >= reader.end:
        return malformed(b"a record ends inside a value")
    if reader.at[0] > 1:
        return malformed(b"a boolean that is not one")
    reader.at += 1
    return reader.at[-1]


cdef int write_number(int kind, int64_t value, Buffer* out) except -1:
    """Append the canonical text of an integer of Avro."""
    cdef bint before_christ
    cdef int64_t days, micros
    reserve(out, 64)
    if kind <= INT64:
        write_integer(out, value)
        return 0
    if kind == TIME:
        write_clock(out, value)
        return 0
    if value == (INT32_MAX if kind == DATE else INT64_MAX):
        put(out, b"infinity", 8)
        return 0
    if value == (INT32_MIN if kind == DATE else INT64_MIN):
        put(out, b"-infinity", 9)
        return 0
    if kind == DATE:
        write_days(out, value, &before_christ)
    else:
        if is_beyond(value):
            days = <int64_t>((<uint64_t>value - PAST_INFINITIES) / <uint64_t>DAY_MICROS)
            micros = <int64_t>((<uint64_t>value - PAST_INFINITIES) % <uint64_t>DAY_MICROS)
        else:
            days = value / DAY_MICROS
            micros = value % DAY_MICROS
        if micros < 0:
            micros += DAY_MICROS
            days -= 1
        write_days(out, days, &before_christ)
        put_byte(out, 32)
        write_clock(out, micros)
        if kind == TIMESTAMPTZ:
            put(out, b"+00", 3)
    if before_christ:
        put(out, b" BC", 3)
    return 0


cdef int write_hexed(const uint8_t* data, size_t size, Buffer* out) except -1:
    reserve(out, 2 * size)
    hex_to(data, size, out.data + out.size)
    out.size += 2 * size
    return 0


cdef int write_escaped(const uint8_t* text, size_t size, Buffer* out) except -1:
    cdef size_t i
    cdef uint8_t byte
    if not text_needs_escape(text, size):
        return append(out, text, size)
    reserve(out, 2 * size)
    for i in range(size):
        byte = text[i]
        if byte == 92:
            put(out, b"\\\\", 2)
        elif 8 <= byte <= 13:
            put_byte(out, 92)
            put_byte(out, b"btnvfr"[byte - 8])
        else:
            put_byte(out, byte)
    return 0


cdef int value_to_text(int kind, Reader* reader, bint copy, Buffer* out) except -1:
    """Append a value's canonical text; with `copy` in the form that COPY's text format has of it."""
    cdef const uint8_t* data
    cdef size_t size
    cdef int64_t value
    cdef uint64_t bits
    if kind >= TEXT:
        get_bytes(reader, &data, &size)
        if copy:
            return write_escaped(data, size, out)
        return append(out, data, size)
    if kind == BYTES:
        get_bytes(reader, &data, &size)
        append(out, b"\\\\x" if copy else b"\\x", 3 if copy else 2)
        return write_hexed(data, size, out)
    if kind == BOOL:
        reserve(out, 1)
        put_byte(out, 116 if get_bool(reader) else 102)
        return 0
    if kind == FLOAT64:
        reserve(out, 64)
        get_bits(reader, 8, &bits)
        return write_double(out, double_of_bits(bits), False)
    if kind == FLOAT32:
        reserve(out, 64)
        get_bits(reader, 4, &bits)
        return write_double(out, float_of_bits(<uint32_t>bits), True)
    get_number(kind, reader, &value)
    return write_number(kind, value, out)


cdef int write_numeric(const uint8_t* text, size_t size, int column, Buffer* out) except -1:
    """Append PostgreSQL's binary numeric, with its length, of a canonical text."""
    cdef const uint8_t* whole
    cdef const uint8_t* fraction
    cdef size_t whole_size, scale, i, first
    cdef int64_t groups, weight, count, group, position
    cdef int sign = 0, digit, place
    cdef size_t start
    cdef uint8_t* at
    check_numeric(text, size)
    if not is_digit(text[size - 1]):
        reserve(out, 12)
        put32(out, 8)
        put32(out, 0)
        put16(out, 0xC000 if text[0] == 78 else 0xF000 if text[0] == 45 else 0xD000)
        put16(out, 0)
        return 0
    if text[0] == 45:
        sign = 0x4000
        text += 1
        size -= 1
    while size > 1 and text[0] == 48 and text[1] != 46:
        text += 1
        size -= 1
    whole = text
    fraction = <const uint8_t*>memchr(text, 46, size)
    if fraction == NULL:
        whole_size = size
        scale = 0
        fraction = text + size
    else:
        whole_size = fraction - text
        fraction += 1
        scale = size - whole_size - 1
    if whole_size == 1 and whole[0] == 48:
        whole_size = 0
    weight = <int64_t>((whole_size + 3) / 4) - 1
    groups = weight + 1 + <int64_t>((scale + 3) / 4)
    if scale > <size_t>MAX_SCALE or weight > INT16_MAX or groups > UINT16_MAX:
        return unsupported(column, b"a numeric beyond the range of PostgreSQL's")
    reserve(out, 12 + 2 * <size_t>groups)
    start = out.size
    at = out.data + start + 12
    count = 0
    # Whole part: the first group may have fewer than four digits.
    first = whole_size % 4
    i = 0
    digit = 0
    for i in range(whole_size):
        digit = digit * 10 + (whole[i] - 48)
        if (i + 1) % 4 == first % 4:
            store16(at, <uint16_t>digit)
            at += 2
            digit = 0
    i = 0
    while i < scale:
        digit = 0
        for place in range(4):
            digit *= 10
            if i < scale:
                digit += fraction[i] - 48
            i += 1
        store16(at, <uint16_t>digit)
        at += 2
    # PostgreSQL's own form has no zero groups at either end.
    first = 0
    while groups > 0 and load16(out.data + start + 12 + 2 * first) == 0:
        first += 1
        groups -= 1
        weight -= 1
    while groups > 0 and load16(out.data + start + 12 + 2 * (first + <size_t>groups - 1)) == 0:
        groups -= 1
    if first and groups:
        memmove(out.data + start + 12, out.data + start + 12 + 2 * first, 2 * <size_t>groups)
    if groups == 0:
        weight = 0
        sign = 0
    put32(out, <uint32_t>(8 + 2 * groups))
    put16(out, <uint16_t>groups)
    put16(out, <uint16_t><int16_t>weight)
    put16(out, <uint16_t>sign)
    put16(out, <uint16_t>scale)
    out.size += 2 * <size_t>groups
    return 0


cdef int value_to_binary(int kind, int column, Reader* reader, Buffer* out) except -1:
    """Append a value as binary COPY has it: length, then PostgreSQL's binary form."""
    cdef const uint8_t* data
    cdef size_t size
    cdef int64_t value
    cdef uint64_t bits
    if kind >= BYTES:
        get_bytes(reader, &data, &size)
        if size >= INT32_MAX:
            return unsupported(column, b"a value of 2 GB or more")
        if kind == NUMERIC:
            return write_numeric(data, size, column, out)
        if kind == UUID:
            reserve(out, 20)
            put32(out, 16)
            parse_uuid(data, size, out.data + out.size)
            out.size += 16
            return 0
        reserve(out, size + 5)
        if kind == JSONB:
            put32(out, <uint32_t>size + 1)
            put_byte(out, 1)
        else:
            put32(out, <uint32_t>size)
        put(out, data, size)
        return 0
    reserve(out, 12)
    if kind == BOOL:
        put32(out, 1)
        put_byte(out, <uint8_t>get_bool(reader))
        return 0
    if kind == FLOAT64:
        get_bits(reader, 8, &bits)
        put32(out, 8)
        put64(out, bits)
        return 0
    if kind == FLOAT32:
        get_bits(reader, 4, &bits)
        put32(out, 4)
        put32(out, <uint32_t>bits)
        return 0
    get_number(kind, reader, &value)
    if kind == INT32:
        put32(out, 4)
        put32(out, <uint32_t>value)
    elif kind == INT16:
        put32(out, 2)
        put16(out, <uint16_t>value)
    elif kind == DATE:
        if value != INT32_MAX and value != INT32_MIN:
            value -= EPOCH_DAYS
            if value <= INT32_MIN:
                return unsupported(column, b"a date before PostgreSQL's first")
        put32(out, 4)
        put32(out, <uint32_t>value)
    else:
        if kind == TIMESTAMP or kind == TIMESTAMPTZ:
            if value != INT64_MAX and value != INT64_MIN:
                if is_beyond(value):
                    value = <int64_t>(<uint64_t>value - PAST_INFINITIES - <uint64_t>EPOCH_MICROS)
                    if value < 0 or value >= END_2000:
                        return unsupported(column, b"a timestamp that PostgreSQL does not have")
                else:
                    value -= EPOCH_MICROS
        put32(out, 8)
        put64(out, <uint64_t>value)
    return 0


cdef int copy_row(Layout layout, Reader* reader, const uint8_t* blank, Reader* key, bint binary, Buffer* out) except -1:
    """Append one COPY row of a row in Avro; columns flagged in `blank` (if not NULL) as null; then the key columns
    of `key` (if not NULL)."""
    cdef int i, column, width = layout.width
    cdef const uint8_t* kind = layout.kind
    cdef bint more = False
    if binary:
        reserve(out, 2)
        put16(out, <uint16_t>(width + (layout.key_width if key != NULL else 0)))
        for i in range(width):
            if get_branch(reader) == 0:
                reserve(out, 4)
                put32(out, 0xFFFFFFFF)
            elif blank != NULL and blank[i]:
                skip_value(kind[i], reader)
                reserve(out, 4)
                put32(out, 0xFFFFFFFF)
            else:
                value_to_binary(kind[i], i, reader, out)
        if key != NULL:
            for i in range(layout.key_width):
                column = layout.key_column[i]
                value_to_binary(kind[column], column, key, out)
        return 0
    for i in range(width):
        reserve(out, 3)
        if more:
            put_byte(out, 9)
        more = True
        if get_branch(reader) == 0:
            put(out, b"\\N", 2)
        elif blank != NULL and blank[i]:
            skip_value(kind[i], reader)
            put(out, b"\\N", 2)
        else:
            value_to_text(kind[i], reader, True, out)
    if key != NULL:
        for i in range(layout.key_width):
            reserve(out, 1)
            if more:
                put_byte(out, 9)
            more = True
            value_to_text(kind[layout.key_column[i]], key, True, out)
    reserve(out, 1)
    put_byte(out, 10)
    return 0


cdef int copy_key(Layout layout, Reader* key, bint binary, Buffer* out) except -1:
    """Append one COPY row of a key in Avro."""
    cdef int i, column
    reserve(out, 2)
    if binary:
        put16(out, <uint16_t>layout.key_width)
    for i in range(layout.key_width):
        column = layout.key_column[i]
        if binary:
            value_to_binary(layout.kind[column], column, key, out)
        else:
            reserve(out, 1)
            if i:
                put_byte(out, 9)
            value_to_text(layout.kind[column], key, True, out)
    if not binary:
        reserve(out, 1)
        put_byte(out, 10)
    return 0


cdef object text_of(int kind, Reader* reader, Buffer* scratch):
    scratch.size = 0
    reserve(scratch, 1)
    value_to_text(kind, reader, False, scratch)
    try:
        return PyUnicode_DecodeUTF8(<const char*>scratch.data, <Py_ssize_t>scratch.size, NULL)
    except UnicodeDecodeError as error:
        raise DecodeError(f"a text that is not UTF-8: {error}") from None


cdef tuple texts_of_row(Layout layout, Reader* reader, Buffer* scratch):
    """The canonical texts of a row in Avro."""
    cdef int i
    texts = []
    for i in range(layout.width):
        texts.append(text_of(layout.kind[i], reader, scratch) if get_branch(reader) else None)
    return tuple(texts)


cdef tuple texts_of_key(Layout layout, Reader* reader, Buffer* scratch):
    """The canonical texts of a key in Avro, in the order of `Layout.key`."""
    cdef int i
    texts = []
    for i in range(layout.key_width):
        texts.append(text_of(layout.kind[layout.key_column[i]], reader, scratch))
    return tuple(texts)
