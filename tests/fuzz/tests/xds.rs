//! Resources of a control plane: whatever bytes come, conversion answers with a resource or with words, and what it takes it
//! takes again.

use bolero::check;
use envoy_types::pb::google::protobuf::Any;
use oxmesh_proxy::xds::{
    convert::{self, Options},
    kind::Kind,
};

use crate::resources::{SHAPES, resource};

#[test]
fn any_bytes_are_taken_twice_alike_or_refused_with_words() {
    let seeds = seeds();
    check!().with_iterations(5_000).with_type::<(u8, Vec<(u16, u8)>, Vec<u8>)>().for_each(|(which, changes, tail)| {
        let (kind, seed) = &seeds[usize::from(*which) % seeds.len()];
        let mut value = seed.clone();
        for (at, byte) in changes {
            if let Some(place) = value.len().checked_sub(1).map(|last| usize::from(*at) % (last + 1)) {
                value[place] = *byte;
            }
        }
        value.extend(tail);
        let any = Any { type_url: (*kind).to_owned(), value };
        match convert::resource(kind, &any, &Options::SERVER) {
            Ok((resource, _)) => {
                let again = convert::resource(kind, &any, &Options::SERVER);
                assert_eq!(again.map(|(again, _)| again).ok(), Some(resource));
            }
            Err(refused) => assert!(!refused.to_string().is_empty()),
        }
    });
}

/// Each kind in each of its forms.
fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let each = |kind: Kind| (0..SHAPES).map(move |shape| (kind.type_url(), resource(kind, "a", shape).value));
    Kind::ALL.into_iter().flat_map(each).collect()
}
