"""DICOM: pixels as they are meant, and headers that say which images belong together and nothing of who the patient is."""

import hashlib
import io
import struct
import warnings

import numpy as np
import pydicom
import pytest
from image_files import (
    LIMIT,
    PATIENT,
    compressed,
    dataset,
    dicom,
    ellipse,
    encode,
    outcome,
    picture,
    read,
    reason,
    save,
    twelve_bit,
)
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    MPEG2MPML,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLSLossless,
    RLELossless,
)

from clipcovid.data.dicom import read_header
from clipcovid.data.images import decode_image, open_image
from clipcovid.data.pixels import STRETCHED_NOTE

BLANK = {"patient_id": "", "patient_key": "", "view": "", "study_date": ""}


def test_a_header_tells_patients_apart_by_a_hash_of_issuer_and_id():
    header = read_header(dicom(ViewPosition="PA", StudyDate="20200314"))
    digest = hashlib.sha256(b"\x004711").hexdigest()[:16]
    assert header == {"patient_id": digest, "patient_key": digest, "view": "PA", "study_date": "20200314"}
    assert read_header(dicom(syntax=ImplicitVRLittleEndian, PatientID=" 4711 "))["patient_id"] == digest
    ids = {read_header(dicom(**tags))["patient_id"] for tags in ({}, {"PatientID": "4712"}, {"IssuerOfPatientID": "A"})}
    assert len(ids) == 3
    for secret in (PATIENT, "Doe", "Jane", "4711"):
        assert secret not in str(read_header(dicom(PatientName=PATIENT)))


def test_a_patient_id_that_says_unknown_is_none_and_ids_that_differ_in_writing_share_a_key():
    notes = []
    for word in ("ANONYMOUS", "Unknown", "N/A", "-"):
        assert read_header(dicom(PatientID=word), notes) == BLANK
    assert set(notes) == {"DICOM whose patient id is a word for an unknown one: its patient is not known"}
    assert len(notes) == 4
    first, second, other = (read_header(dicom(PatientID=name)) for name in ("p003", "P3", "P4"))
    assert first["patient_key"] == second["patient_key"] != other["patient_key"]
    assert first["patient_id"] != second["patient_id"]


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({"PatientID": ""}, BLANK),
        ({"PatientID": " \0 "}, BLANK),
        ({"PatientID": "", "IssuerOfPatientID": "A"}, BLANK),
        ({"PatientID": None, "ViewPosition": "ll "}, BLANK | {"view": "LL"}),
        ({"PatientID": "", "StudyDate": "2020.03.14"}, BLANK | {"study_date": "20200314"}),
        ({"PatientID": "", "StudyDate": "March"}, BLANK),
    ],
)
def test_odd_headers_are_read_as_far_as_they_go(tags, expected):
    assert read_header(dicom(**tags)) == expected


def test_an_id_of_several_values_is_one_id():
    assert len(read_header(dicom(PatientID=["4711", "4712"]))["patient_id"]) == 16


def test_no_file_raises():
    rng = np.random.default_rng(0)
    for data in (
        b"",
        b"text",
        bytes(3000),
        encode(picture()),
        dicom()[:200],
        dicom(syntax=DeflatedExplicitVRLittleEndian),
    ):
        assert read_header(data) == BLANK
    source = dicom(ViewPosition="PA", StudyDate="20200314")
    for _ in range(200):
        data = bytearray(source)
        for place in rng.integers(0, 700, 6):
            data[place] = rng.integers(0, 256)
        assert read_header(bytes(data)).keys() == BLANK.keys()


def scaled(values, low, high):
    return np.rint(np.clip((np.asarray(values, dtype=np.float64) - low) * (255 / (high - low)), 0, 255)).astype(
        np.uint8
    )


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_dicom_without_window_goes_from_least_to_greatest(syntax):
    array = twelve_bit()
    assert np.array_equal(read(dicom(syntax=syntax)), scaled(array, 0, 4095))
    inverted = read(dicom(syntax=syntax, PhotometricInterpretation="MONOCHROME1"))
    assert np.array_equal(inverted, 255 - scaled(array, 0, 4095))


def test_dicom_8_bit_signed_and_float():
    array = picture()
    assert np.array_equal(read(dicom(array, BitsStored=8)), scaled(array, array.min(), array.max()))
    signed = twelve_bit().astype(np.int16) - 1024
    assert np.array_equal(read(dicom(signed, BitsStored=16)), scaled(signed, -1024, 3071))
    made = dataset(twelve_bit(), BitsStored=12)
    del made.PixelData, made.BitsStored, made.HighBit
    made.BitsAllocated, made.FloatPixelData = 32, twelve_bit().astype("<f4").tobytes()
    assert np.array_equal(read(save(made)), scaled(twelve_bit(), 0, 4095))


def test_dicom_rescale_and_window():
    array = twelve_bit()
    ct = {"RescaleSlope": "2", "RescaleIntercept": "-1024", "WindowCenter": "1000.5", "WindowWidth": "2001"}
    assert np.array_equal(read(dicom(**ct)), scaled(array * 2.0 - 1024, 0, 2000))
    # The window is the range even where the image does not fill it.
    wide = read(dicom(WindowCenter="8192.5", WindowWidth="16385"))
    assert np.array_equal(wide, scaled(array, 0, 16384))
    assert wide.max() == 64
    several = read(dicom(WindowCenter=["1000.5", "7"], WindowWidth=["2001", "9"]))
    assert np.array_equal(several, scaled(array, 0, 2000))
    exact = read(dicom(WindowCenter="1000", WindowWidth="2000", VOILUTFunction="LINEAR_EXACT"))
    assert np.array_equal(exact, scaled(array, 0, 2000))
    sigmoid = read(dicom(WindowCenter="1000", WindowWidth="2000", VOILUTFunction="SIGMOID"))
    assert np.array_equal(sigmoid, np.rint(255 / (1 + np.exp(-4 * (array - 1000.0) / 2000))).astype(np.uint8))
    negative = read(dicom(RescaleSlope="-1", RescaleIntercept="4095", WindowCenter="2048", WindowWidth="4096"))
    assert np.array_equal(negative, scaled(4095.0 - array, 0, 4095))


def test_dicom_window_agrees_with_pydicom():
    made = pydicom.dcmread(io.BytesIO(dicom(WindowCenter="1800", WindowWidth="900")))
    expected = scaled(pydicom.pixels.apply_voi_lut(made.pixel_array, made), 0, 4095)
    assert np.abs(read(save(made)).astype(int) - expected).max() <= 1


def test_dicom_without_a_window_is_said_to_be_scaled_from_its_own_range(capsys, tmp_path):
    assert notes_of(dicom())[1] == [STRETCHED_NOTE]
    assert notes_of(dicom(WindowCenter="2000", WindowWidth="4000"))[1] == []
    (tmp_path / "a.dcm").write_bytes(dicom())
    open_image(str(tmp_path / "a.dcm"), max_pixels=LIMIT)
    assert capsys.readouterr().err == ""  # of a single image it says nothing


def notes_of(data):
    picture = decode_image(data, max_pixels=LIMIT)
    return picture.pixels, list(picture.notes)


def test_what_was_assumed_of_one_file_is_said_apart_from_what_a_job_prints(tmp_path, capsys):
    (tmp_path / "a.dcm").write_bytes(dicom(WindowCenter="9000", WindowWidth="80"))
    assert np.array_equal(open_image(str(tmp_path / "a.dcm"), max_pixels=LIMIT), scaled(twelve_bit(), 0, 4095))
    said = capsys.readouterr()
    window = "DICOM whose window (9000/80) leaves nothing of its values: their own range is used"
    assert (said.out, said.err) == ("", f"note: {tmp_path / 'a.dcm'}: {window}.\n")


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_a_window_outside_of_the_values_is_named_and_their_range_used(photometric, function):
    array = twelve_bit() // 2 + np.uint16(1000)
    tags = {"VOILUTFunction": function, "PhotometricInterpretation": photometric}
    expected = scaled(array, 1000, 3047)
    for window in (("40", "80"), ("9000", "80")):
        pixels, notes = notes_of(dicom(array, WindowCenter=window[0], WindowWidth=window[1], **tags))
        assert np.array_equal(pixels, 255 - expected if photometric == "MONOCHROME1" else expected)
        assert notes == [
            f"DICOM whose window ({window[0]}/{window[1]}) leaves nothing of its values: their own range is used"
        ]
    assert notes_of(dicom(array, WindowCenter="2000", WindowWidth="80", **tags))[1] == []


def test_a_window_that_leaves_a_few_shades_of_many_is_not_followed():
    array = twelve_bit()
    array[array < 900] = 0  # the collimator, which alone lies within
    pixels, notes = notes_of(dicom(array, WindowCenter="40", WindowWidth="400"))
    assert np.array_equal(pixels, scaled(array, 0, 4095))
    assert len(notes) == 1
    stripes = np.tile(np.array([[0, 500, 1000]], np.uint16), (9, 3))
    assert notes_of(dicom(stripes, WindowCenter="500.5", WindowWidth="1001"))[1] == []
    assert np.array_equal(read(dicom(stripes, WindowCenter="500.5", WindowWidth="1001")), scaled(stripes, 0, 1000))


def test_a_look_up_table_outside_of_the_values_is_not_followed():
    pixels, notes = notes_of(dicom(twelve_bit(), VOILUTSequence=lut(np.arange(100), first=30000)))
    assert np.array_equal(pixels, scaled(twelve_bit(), 0, 4095))
    assert "look-up table" in notes[0]


def test_padding_alone_does_not_make_a_window_right():
    array = twelve_bit() // 2 + np.uint16(1000)
    array[:4] = 0
    pixels, notes = notes_of(dicom(array, WindowCenter="40", WindowWidth="80", PixelPaddingValue=0))
    assert np.array_equal(pixels[4:], scaled(array, array[4:].min(), array[4:].max())[4:])
    assert len(notes) == 1


# Bits


def smooth(bits=12, height=40, width=50):
    """A ramp with noise that uses all of its bits."""
    ramp = np.linspace(0, 2**bits - 200, height * width).reshape(height, width)
    array = (ramp + np.random.default_rng(6).integers(0, 100, (height, width))).astype(np.uint16)
    array[0, 0], array[-1, -1] = 0, 2**bits - 1
    return array


def with_high_bit(array, high, **tags):
    made = dataset(array, **{"BitsStored": 12} | tags)
    made.HighBit = high
    return save(made)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_values_at_the_upper_end_of_their_cells_are_shifted(syntax):
    for array in (twelve_bit(), smooth()):
        for high in (11, 12, 15):
            moved = array << np.uint16(high - 11)
            tags = {"WindowCenter": "1000.5", "WindowWidth": "2001", "syntax": syntax}
            assert np.array_equal(read(with_high_bit(moved, high, **tags)), scaled(array, 0, 2000))
    signed = twelve_bit().astype(np.int16) - np.int16(2048)
    assert np.array_equal(read(with_high_bit(signed << 4, 15, syntax=syntax)), scaled(signed, -2048, 2047))


def test_values_at_the_lower_end_are_read_whatever_the_high_bit_is():
    for high in (15, 14, 3, 40):
        assert np.array_equal(read(with_high_bit(smooth(), high)), scaled(smooth(), 0, 4095))


def test_compressed_values_are_the_codecs():
    made = dataset(smooth(), BitsStored=12)
    made.compress(RLELossless, encoding_plugin="pydicom")
    made.HighBit = 15
    assert np.array_equal(read(save(made)), scaled(smooth(), 0, 4095))
    made = dataset(smooth(16), BitsStored=16)
    made.compress(JPEG2000Lossless, encoding_plugin="pylibjpeg")
    made.BitsStored, made.HighBit = 12, 11
    assert np.array_equal(read(save(made)), scaled(smooth(16), 0, 65535))


@pytest.mark.parametrize("announced", [True, False])
def test_overlays_in_the_unused_bits_are_dropped(announced):
    drawn = (ellipse(40, 50, (10, 10, 30, 30)) > 0).astype(np.uint16)
    for high, place in ((11, 12), (11, 15), (15, 0)):
        array = (smooth() << np.uint16(high - 11)) | (drawn << np.uint16(place))
        made = dataset(array, BitsStored=12)
        made.HighBit = high
        if announced:
            made.add_new((0x6000, 0x0102), "US", place)
        assert np.array_equal(read(save(made)), scaled(smooth(), 0, 4095))
    signed = (smooth().astype(np.int32) - 2048) & 0xFFF | drawn.astype(np.int32) << 13
    assert np.array_equal(read(dicom(signed.astype(np.uint16).view(np.int16))), scaled(smooth(), 0, 4095))


def test_negative_values_may_have_ones_or_zeros_above_them():
    signed = smooth().astype(np.int16) - np.int16(2048)
    for array in (signed, signed & np.int16(0x0FFF)):
        assert np.array_equal(read(dicom(array)), scaled(signed, -2048, 2047))


def test_a_header_that_says_too_few_bits_is_refused():
    words = "more than the 12 bits that its header says (BitsStored, HighBit)"
    assert words in reason(dicom(smooth(14)))
    assert words in reason(dicom(smooth() << np.uint16(4)))


@pytest.mark.parametrize("window", [("", ""), ("100", "0"), ("100", "1"), ("100", "-5")])
def test_an_impossible_dicom_window_counts_as_none(window):
    data = dicom(WindowCenter=window[0], WindowWidth=window[1])
    assert np.array_equal(read(data), scaled(twelve_bit(), 0, 4095))


def lut(entries, first=0, bits=16):
    item = Dataset()
    item.LUTDescriptor = [len(entries) % 2**16, first, bits]
    item.LUTData = list(map(int, entries))
    item["LUTDescriptor"].VR = item["LUTData"].VR = "US"
    return [item]


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_dicom_voi_lut_goes_before_the_window(bits):
    top = 2**bits - 1
    entries = np.rint(top * (np.arange(4096) / 4095) ** 0.5)
    data = dicom(VOILUTSequence=lut(entries, bits=bits), WindowCenter="50", WindowWidth="20")
    assert np.array_equal(read(data), scaled(entries[twelve_bit()], 0, top))


def test_dicom_short_luts_hold_their_ends_and_modality_lut_is_applied():
    array = twelve_bit()
    entries = np.arange(1000, dtype=np.uint16) * 4
    expected = scaled(entries[np.clip(array.astype(int) - 500, 0, 999)], 0, 3996)
    data = dicom(VOILUTSequence=lut(entries, first=500, bits=12))
    assert np.array_equal(read(data), expected)
    assert np.array_equal(read(dicom(ModalityLUTSequence=lut(entries, first=500, bits=12))), expected)
    whole = np.arange(65536)[::-1]  # the descriptor holds 0 for 65536 entries
    made = dataset(array * np.uint16(16), VOILUTSequence=lut([0]))
    made.VOILUTSequence[0].LUTDescriptor = [0, 0, 16]
    made.VOILUTSequence[0]["LUTData"] = DataElement("LUTData", "OW", whole.astype("<u2").tobytes())
    assert np.array_equal(read(save(made)), scaled(whole[array * np.uint16(16)], 0, 65535))
    made = dataset(array, BitsStored=12, VOILUTSequence=lut(entries, first=500, bits=12))
    made.VOILUTSequence[0]["LUTData"] = DataElement("LUTData", "OW", entries.astype("<u2").tobytes())
    assert np.array_equal(read(save(made)), expected)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_dicom_padding_is_black_and_does_not_stretch_the_range(photometric):
    array = (twelve_bit() % 1000 + 500).astype(np.uint16)
    array[5, :2] = 500, 1499
    padded = array.copy()
    padded[:4] = 65535
    decoded = read(dicom(padded, BitsStored=16, PixelPaddingValue=65535, PhotometricInterpretation=photometric))
    shades = scaled(array, 500, 1499)
    assert (decoded[:4] == 0).all()
    assert np.array_equal(decoded[4:], (255 - shades if photometric == "MONOCHROME1" else shades)[4:])
    padded[:2] = 65000
    tags = {"PixelPaddingValue": 65000, "PixelPaddingRangeLimit": 65535, "PhotometricInterpretation": photometric}
    assert np.array_equal(read(dicom(padded, BitsStored=16, **tags)), decoded)


def test_dicom_colour():
    colour = picture(channels=3)
    assert np.array_equal(read(dicom(colour, BitsStored=8)), colour)
    planar = np.ascontiguousarray(colour.transpose(2, 0, 1))
    made = dataset(colour, PlanarConfiguration=1)
    made.PixelData = planar.tobytes()
    assert np.array_equal(read(save(made)), colour)
    ybr = pydicom.pixels.convert_color_space(colour, "RGB", "YBR_FULL")
    decoded = read(dicom(ybr, BitsStored=8, PhotometricInterpretation="YBR_FULL"))
    assert np.abs(decoded.astype(int) - colour).max() <= 2
    deep = colour.astype(np.uint16) * 257
    assert np.array_equal(read(dicom(deep, BitsStored=16)), colour)


@pytest.mark.parametrize("bits", [8, 16])
def test_dicom_palette(bits):
    index = picture() % 16
    table = np.random.default_rng(8).integers(0, 256, (3, 16))
    made = dataset(index.astype(np.uint8), PhotometricInterpretation="PALETTE COLOR")
    for name, shades in zip(("Red", "Green", "Blue"), table, strict=True):
        setattr(made, f"{name}PaletteColorLookupTableDescriptor", [16, 0, bits])
        body = shades.astype(np.uint8).tobytes() if bits == 8 else (shades * 257).astype("<u2").tobytes()
        setattr(made, f"{name}PaletteColorLookupTableData", body)
    assert np.array_equal(read(save(made)), table.T[index].astype(np.uint8))


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_dicom_lossless_compression(syntax):
    assert np.array_equal(read(compressed(syntax)), read(dicom()))


def encapsulated(frame, syntax, shape, **tags):
    made = dataset(np.zeros(shape, np.uint8), syntax, **tags)
    made.PixelData = encapsulate([frame])
    made["PixelData"].is_undefined_length = True
    return save(made)


def test_dicom_jpeg():
    gray = picture(48, 64)
    jpeg = encode(gray, "JPEG", quality=90)
    stored = read(jpeg)
    expected = scaled(stored, stored.min(), stored.max())
    assert (
        np.abs(read(encapsulated(jpeg, JPEGBaseline8Bit, gray.shape)).astype(int) - expected).max() <= 2
    )  # decoders round apart


def test_dicom_colour_jpeg():
    smooth = np.kron(picture(6, 8, 3), np.ones((8, 8, 1), np.uint8))
    jpeg = encode(smooth, "JPEG", quality=95)
    tags = {"PhotometricInterpretation": "YBR_FULL_422"}
    decoded = read(encapsulated(jpeg, JPEGBaseline8Bit, smooth.shape, **tags))
    assert np.abs(decoded.astype(int) - read(jpeg)).mean() < 2


def test_headerless_dicom():
    for syntax in (ImplicitVRLittleEndian, ExplicitVRLittleEndian):
        made = dataset(twelve_bit(), syntax, BitsStored=12)
        buffer = io.BytesIO()
        implicit = syntax == ImplicitVRLittleEndian
        del made.file_meta, made.preamble
        pydicom.dcmwrite(buffer, made, implicit_vr=implicit, little_endian=True, enforce_file_format=False)
        assert buffer.getvalue()[:2] == b"\x08\x00"
        assert np.array_equal(read(buffer.getvalue()), read(dicom()))


def test_dicom_refusals():
    array = np.stack([twelve_bit()] * 3)
    made = dataset(array[0], BitsStored=12, NumberOfFrames=3)
    made.PixelData = array.tobytes()
    assert reason(save(made)) == "multi-frame DICOM (3 frames); export the frame you want as a single image"
    made = dataset(twelve_bit(), BitsStored=12)
    del made.PixelData
    assert "without pixel data" in reason(save(made))
    assert reason(dicom(np.full((8, 8), 77, np.uint16))) == "constant: every pixel is 77"
    assert "declares no pixels" in reason(dicom(Rows=0))
    assert "declares 60000x60000 pixels" in reason(dicom(Rows=60000, Columns=60000))
    made = dataset(twelve_bit(), BitsStored=12)
    made.PixelData = made.PixelData[: len(made.PixelData) // 2]
    assert "(Explicit VR Little Endian) that can't be decoded: damaged or cut short" in reason(save(made))
    assert "damaged or cut short" in reason(dicom()[:-1000])
    assert "damaged or cut short" in reason(encapsulated(b"\xff\xd8\xff\xe0rubbish!", JPEGBaseline8Bit, (8, 8)))
    assert "transfer syntax that holds no still image" in reason(encapsulated(b"video", MPEG2MPML, (8, 8)))
    assert "deflated" in reason(dicom(syntax=DeflatedExplicitVRLittleEndian))
    assert "photometric interpretation" in reason(dicom(PhotometricInterpretation="ODD"))
    broken = lut(np.arange(4096))
    broken[0].LUTData = []
    assert "look-up table" in reason(dicom(VOILUTSequence=broken))


def test_a_bomb_inside_a_dicom_is_refused():
    jpeg = encode(picture(), "JPEG").replace(struct.pack(">HH", 53, 71), struct.pack(">HH", 60000, 60000))
    assert "declares 60000x60000" in reason(encapsulated(jpeg, JPEGBaseline8Bit, (53, 71)))
    jpeg2000 = bytearray(encode(picture(), "JPEG2000", no_jp2=True))
    jpeg2000[8:16] = struct.pack(">II", 70000, 70000)
    assert "declares 70000x70000" in reason(encapsulated(bytes(jpeg2000), JPEG2000Lossless, (53, 71)))


def test_a_missing_decoder_names_the_syntax_and_the_way_out(monkeypatch):
    from pydicom.pixels.decoders import JPEGExtended12BitDecoder, JPEGLSLosslessDecoder

    monkeypatch.setattr(JPEGLSLosslessDecoder, "_available", {})
    text = reason(encapsulated(b"\xff\xd8\xff\xf7", JPEGLSLossless, (8, 8)))
    assert "JPEG-LS Lossless" in text
    assert "pip install 'clipcovid[dicom]'" in text
    pillow = {name: run for name, run in JPEGExtended12BitDecoder._available.items() if name == "pillow"}
    monkeypatch.setattr(JPEGExtended12BitDecoder, "_available", pillow)
    frame = encode(picture(8, 8), "JPEG").replace(b"\xff\xc0\x00\x0b\x08", b"\xff\xc1\x00\x0b\x0c")
    text = reason(encapsulated(frame, JPEGExtended12Bit, (8, 8), BitsAllocated=16, BitsStored=12))
    assert "JPEG Extended" in text
    assert "pip install 'clipcovid[dicom]'" in text


def test_no_patient_in_any_reason_warning_or_log(caplog):
    rng = np.random.default_rng(9)
    source = dicom(WindowCenter="1000", WindowWidth="2000", RescaleSlope="1", RescaleIntercept="0")
    name = source.index(PATIENT.encode())
    with warnings.catch_warnings(record=True) as heard, caplog.at_level(0):
        warnings.simplefilter("always")
        for _ in range(300):
            data = bytearray(source)
            places = rng.integers(132, 700, 3)
            for place in places[(places < name) | (places >= name + len(PATIENT))]:
                data[place] = rng.integers(0, 256)
            assert "Doe" not in outcome(bytes(data))
    assert "Doe" not in caplog.text
    assert not [warning for warning in heard if "Doe" in str(warning.message)]
