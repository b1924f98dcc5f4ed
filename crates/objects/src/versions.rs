//! One page of a listing of all versions, as S3 writes it (`ListObjectVersions`, its reference). Pure.
//!
//! Versions and marks of deletions lie in one sequence, by key, those of a key from the newest to the oldest; that order is kept.

use percent_encoding::percent_decode_str;
use quick_xml::events::Event;

/// A page.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Page {
    pub(crate) entries: Vec<Entry>,
    /// Key and version after which the next one goes on; `None`: this is the last.
    pub(crate) next: Option<(String, String)>,
}

/// A version of an object, or the mark that it was deleted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) key: String,
    /// Its name; `null`: from a time when the bucket kept none.
    pub(crate) version: String,
    /// When, as it is written.
    pub(crate) at: String,
    pub(crate) bytes: u64,
    pub(crate) is_deletion: bool,
}

impl Page {
    /// Reads one that was asked for with `encoding-type=url`.
    ///
    /// # Errors
    /// It is none; in words.
    pub(crate) fn read(xml: &[u8]) -> Result<Self, String> {
        let not = |why: &str| format!("the service's listing of versions cannot be read: {why}");
        let text = std::str::from_utf8(xml).map_err(|e| not(&e.to_string()))?;
        let mut reader = quick_xml::Reader::from_str(text);
        let (mut page, mut path, mut entry) = (Self::default(), Vec::<String>::new(), Entry::default());
        let (mut is_truncated, mut next) = (false, (String::new(), String::new()));
        loop {
            match reader.read_event().map_err(|e| not(&e.to_string()))? {
                Event::Start(tag) => {
                    path.push(String::from_utf8_lossy(tag.local_name().as_ref()).into_owned());
                    if path.len() == 1 && path[0] != "ListVersionsResult" {
                        return Err(not(&format!("it begins with {}", path[0])));
                    }
                }
                Event::Text(text) => {
                    let text = text.decode().map_err(|e| not(&e.to_string()))?;
                    let decoded = || percent_decode_str(&text).decode_utf8_lossy().into_owned();
                    let path: Vec<&str> = path.iter().map(String::as_str).collect();
                    match path[..] {
                        [_, "IsTruncated"] => is_truncated = &*text == "true",
                        [_, "NextKeyMarker"] => next.0 = decoded(),
                        [_, "NextVersionIdMarker"] => next.1 = text.into_owned(),
                        [_, "Version" | "DeleteMarker", "Key"] => entry.key = decoded(),
                        [_, "Version" | "DeleteMarker", "VersionId"] => entry.version = text.into_owned(),
                        [_, "Version" | "DeleteMarker", "LastModified"] => entry.at = text.into_owned(),
                        [_, "Version", "Size"] => {
                            entry.bytes = text.parse().map_err(|_| not(&format!("{text} is no size")))?;
                        }
                        _ => {}
                    }
                }
                Event::End(_) => {
                    let ended = path.pop();
                    if let (1, Some(kind @ ("Version" | "DeleteMarker"))) = (path.len(), ended.as_deref()) {
                        entry.is_deletion = kind == "DeleteMarker";
                        if entry.key.is_empty() || entry.version.is_empty() || entry.at.is_empty() {
                            return Err(not("a version has no key, no name or no time"));
                        }
                        page.entries.push(std::mem::take(&mut entry));
                    }
                }
                Event::Eof if path.is_empty() => break,
                Event::Eof => return Err(not("it ends in the middle")),
                _ => {}
            }
        }
        if is_truncated {
            if next.0.is_empty() {
                return Err(not("it is not whole, and does not say where it goes on"));
            }
            page.next = Some(next);
        }
        Ok(page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const XML: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<ListVersionsResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>b</Name><Prefix>p/</Prefix><KeyMarker/>
<IsTruncated>true</IsTruncated><NextKeyMarker>p/a%20b</NextKeyMarker><NextVersionIdMarker>v1</NextVersionIdMarker>
<DeleteMarker><Key>p/a%20b</Key><VersionId>v3</VersionId><IsLatest>true</IsLatest><LastModified>2026-11-29T12:00:02.000Z</LastModified>
<Owner><ID>Key</ID><DisplayName>x</DisplayName></Owner></DeleteMarker>
<Version><Key>p/a%20b</Key><VersionId>v2</VersionId><IsLatest>false</IsLatest><LastModified>2026-11-29T12:00:01.000Z</LastModified>
<ETag>&quot;e&quot;</ETag><Size>17</Size><Owner><ID>Key</ID></Owner><StorageClass>STANDARD</StorageClass></Version>
</ListVersionsResult>"#;

    #[test]
    fn versions_and_deletions_are_read_in_their_order() {
        let page = Page::read(XML.as_bytes()).expect("a page");
        let [deleted, version] = &page.entries[..] else { panic!("{page:?}") };
        assert!(deleted.is_deletion && !version.is_deletion);
        assert_eq!((deleted.key.as_str(), version.version.as_str(), version.bytes), ("p/a b", "v2", 17));
        assert_eq!(version.at, "2026-11-29T12:00:01.000Z");
        assert_eq!(page.next, Some(("p/a b".to_owned(), "v1".to_owned())));
        let last = XML.replace("<IsTruncated>true", "<IsTruncated>false");
        assert_eq!(Page::read(last.as_bytes()).expect("a page").next, None);
    }

    #[test]
    fn what_is_no_whole_page_is_refused() {
        for cut in 0..XML.len() {
            assert!(Page::read(&XML.as_bytes()[..cut]).is_err() || cut < 40, "{cut}");
        }
        for bad in [
            XML.replace("<Size>17", "<Size>x"),
            XML.replace("<VersionId>v2</VersionId>", ""),
            XML.replace("<NextKeyMarker>p/a%20b</NextKeyMarker>", ""),
            XML.replace("ListVersionsResult", "ListBucketResult"),
        ] {
            assert!(Page::read(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
