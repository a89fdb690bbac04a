import xml.etree.ElementTree as ET

import pytest

from segcore.annotations.xmp import Keywords, keywords_of, with_keywords, without_keywords

DOG = Keywords(("dog", "a & <b>"), ("Segment Archive|dog",))

LIGHTROOM = b"""<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="Adobe XMP Core 7.0-c000 1.000000, 0000/00/00-00:00:00 ">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:xmp="http://ns.adobe.com/xap/1.0/"
    xmlns:dc="http://purl.org/dc/elements/1.1/"
    xmlns:lr="http://ns.adobe.com/lightroom/1.0/"
    xmlns:crs="http://ns.adobe.com/camera-raw-settings/1.0/"
   xmp:Rating="4"
   crs:Exposure2012="+0.35"
   crs:RawFileName="a > b.CR2">
   <dc:subject>
    <rdf:Bag>
     <rdf:li>Holidays</rdf:li>
     <rdf:li>dog</rdf:li>
    </rdf:Bag>
   </dc:subject>
   <lr:hierarchicalSubject>
    <rdf:Bag>
     <rdf:li>Places|Norway</rdf:li>
    </rdf:Bag>
   </lr:hierarchicalSubject>
   <crs:ToneCurvePV2012>
    <rdf:Seq>
     <rdf:li>0, 0</rdf:li>
     <rdf:li>255, 255</rdf:li>
    </rdf:Seq>
   </crs:ToneCurvePV2012>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
"""

DARKTABLE = b"""<?xml version="1.0" encoding="UTF-8"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="XMP Core 4.4.0-Exiv2">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:darktable="http://darktable.sf.net/"
   darktable:xmp_version="5"
   darktable:history_end="2">
   <darktable:history>
    <rdf:Seq>
     <rdf:li
      darktable:operation="exposure"
      darktable:params="00000000000000400000c842"/>
    </rdf:Seq>
   </darktable:history>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
"""

SHORT = b"""\xef\xbb\xbf<?xpacket begin="\xef\xbb\xbf" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
<RDF xmlns="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><Description about='' xmlns:xmp='http://ns.adobe.com/xap/1.0/'
 xmp:Label='>/>' /></RDF></x:xmpmeta><!-- subject --><?xpacket end="w"?>"""

EMPTY_LISTS = b"""<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:d="http://purl.org/dc/elements/1.1/" xmlns:lr="http://ns.adobe.com/lightroom/1.0/">
<d:subject><rdf:Bag/></d:subject><lr:hierarchicalSubject/></rdf:Description></rdf:RDF></x:xmpmeta>"""

NOTHING = b'<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"/>'

SIDECARS = {"Lightroom": LIGHTROOM, "darktable": DARKTABLE, "short": SHORT, "lists": EMPTY_LISTS, "nothing": NOTHING}


@pytest.mark.parametrize("name", SIDECARS)
def test_keywords_are_added_and_every_other_byte_stays(name):
    before = SIDECARS[name]
    held = keywords_of(before)
    after = with_keywords(before, DOG)
    assert keywords_of(after).flat == (*held.flat, *(w for w in DOG.flat if w not in held.flat))
    assert keywords_of(after).hierarchical == (*held.hierarchical, "Segment Archive|dog")
    assert with_keywords(after, DOG) == after
    ET.fromstring(after.removeprefix(b"\xef\xbb\xbf"))
    # What was there is there in its order: the new bytes lie between
    rest = iter(after)
    left_out = {ord(c) for c in "/> \n\t"} if name in ("short", "lists", "nothing") else set()
    assert all(byte in rest for byte in before if byte not in left_out)


def test_only_the_lines_of_new_keywords_are_new():
    lines = LIGHTROOM.decode().splitlines()
    after = with_keywords(LIGHTROOM, DOG).decode().splitlines()
    assert [line for line in after if line not in lines] == [
        "     <rdf:li>a &amp; &lt;b&gt;</rdf:li>",
        "     <rdf:li>Segment Archive|dog</rdf:li>",
    ]
    assert [line for line in after if line in lines] == lines


def test_a_new_sidecar_has_nothing_else():
    data = with_keywords(None, DOG)
    assert keywords_of(data) == DOG and with_keywords(data, DOG) == data
    [description] = ET.fromstring(data).iter("{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description")
    assert len(description) == 2


@pytest.mark.parametrize("name", SIDECARS)
def test_keywords_go_and_others_stay(name):
    held = keywords_of(SIDECARS[name])
    after = without_keywords(with_keywords(SIDECARS[name], DOG), Keywords(("a & <b>",), DOG.hierarchical))
    assert keywords_of(after) == Keywords((*held.flat, *(["dog"] if "dog" not in held.flat else [])), held.hierarchical)
    assert keywords_of(without_keywords(after, keywords_of(after))) == Keywords()


def test_words_that_xml_cannot_hold_lose_what_it_cannot():
    data = with_keywords(None, Keywords(("a\x00b\nc", " ", "\ud800x"), ()))
    assert keywords_of(data).flat == ("ab c", "x")


def test_what_is_no_sidecar_is_refused():
    bomb = b'<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><x>&b;</x>'
    subject = b'xmlns:dc="http://purl.org/dc/elements/1.1/"'
    rdf = NOTHING.replace(b"/>", b"><rdf:Description %s>%s</rdf:Description></rdf:RDF>")
    for data, words in [
        (b"", "no sound XML"),
        (b"\xff\xd8\xff\xe0 no xml", "no sound XML"),
        (b"<x/>", "no rdf:RDF"),
        (LIGHTROOM[:-30], "no sound XML"),
        (bomb, "declares a document type"),
        (LIGHTROOM.decode().encode("utf-16"), "UTF-16"),
        (b'<?xml version="1.0" encoding="iso-8859-1"?>' + NOTHING, "iso-8859-1, not in UTF-8"),
        (rdf % (subject, b"<dc:subject>dog</dc:subject>"), "its subject is no list"),
        (rdf % (subject + b' dc:subject="dog"', b""), "its subject is an attribute"),
    ]:
        for change in (with_keywords, without_keywords):
            with pytest.raises(ValueError, match=words):
                change(data, DOG)
