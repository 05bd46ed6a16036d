"""croissant.json of a published data set: files, records and provenance for programs.

Notable: a pure function of a `Publication`, as its card (flows/card.py) is. Texts that others wrote are cleaned to one
line and are values of JSON; what becomes part of an IRI is quoted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

import pyarrow as pa

from flows.card import (
    BIBTEX,
    TAGS,
    Told,
    clips_in,
    configs,
    corrective_of,
    counts_of,
    license_of,
    newest_of,
    run_facts,
    url_of,
)
from flows.markdown import clean
from store.catalog import SEED_ROUND
from store.publication import ALL, Publication, Round, columns

CONTEXT: dict[str, Any] = {
    "@language": "en", "@vocab": "https://schema.org/", "annotation": "cr:annotation", "arrayShape": "cr:arrayShape",
    "citeAs": "cr:citeAs", "column": "cr:column", "conformsTo": "dct:conformsTo", "containedIn": "cr:containedIn",
    "cr": "http://mlcommons.org/croissant/", "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"}, "dct": "http://purl.org/dc/terms/",
    "description": {"@container": "@language"}, "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"}, "extract": "cr:extract", "field": "cr:field",
    "fileObject": "cr:fileObject", "fileProperty": "cr:fileProperty", "fileSet": "cr:fileSet", "format": "cr:format",
    "includes": "cr:includes", "isArray": "cr:isArray", "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath", "key": "cr:key", "md5": "cr:md5", "name": {"@container": "@language"},
    "parentField": "cr:parentField", "path": "cr:path", "prov": "http://www.w3.org/ns/prov#",
    "rai": "http://mlcommons.org/croissant/RAI/", "recordSet": "cr:recordSet", "references": "cr:references",
    "regex": "cr:regex", "repeated": "cr:repeated", "replace": "cr:replace", "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/", "separator": "cr:separator", "source": "cr:source", "subField": "cr:subField",
    "transform": "cr:transform",
}  # fmt: skip
_SPDX = {"apache-2.0": "Apache-2.0", "mit": "MIT", "odbl": "ODbL-1.0", "odc-by": "ODC-By-1.0", "pddl": "PDDL-1.0"}
_PROV_COLUMNS = {
    "was_derived_from": "prov:wasDerivedFrom",
    "was_generated_by": "prov:wasGeneratedBy",
    "model_digest": "prov:wasAttributedTo",
}


def croissant(publication: Publication, told: Told) -> dict[str, Any]:
    """croissant.json, Croissant 1.1 (docs.mlcommons.org/croissant): files with their digests, a record set a config
    with every column, and provenance in W3C PROV and Croissant's RAI vocabulary. The version is 1.K.0 of round rK:
    rounds are added, and those before stay as they are."""
    newest, (license, _) = newest_of(publication), license_of(publication, told)
    spdx = _SPDX.get(license) or (license.upper() if license.startswith(("cc-", "cc0")) else None)
    owner = told.repo.partition("/")[0]
    scorers = {name for one in corrective_of(publication) for name in counts_of(one.facts, "scorers") if name}
    rewriters = {name for one in corrective_of(publication) for name in counts_of(one.facts, "rewriter_kind") if name}
    found: dict[str, Any] = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.1",
        "name": clean(told.name or told.repo, 120),
        "description": _ABOUT,
        "url": url_of(told),
        "version": f"1.{newest.name[1:]}.0",
        "license": f"https://spdx.org/licenses/{spdx}" if spdx else f"{url_of(told)}#licences",
        "creator": {"@type": "Organization", "name": owner, "url": f"{told.endpoint}/{owner}"},
        **({"datePublished": clean(told.published, 40)} if told.published else {}),
        "keywords": list(dict.fromkeys([*TAGS, *(clean(one, 60) for one in told.tags)])),
        "inLanguage": "en",
        "isLiveDataset": False,
        "citeAs": BIBTEX,
        "rai:dataCollection": _COLLECTION,
        "rai:dataCollectionType": ["Synthetic data generation"],
        "rai:dataManipulationProtocol": _MANIPULATION,
        "rai:dataPreprocessingProtocol": [_PREPROCESSING],
        "rai:machineAnnotationTools": [
            *(f"drift and its parts: {clean(one, 120)}" for one in sorted(scorers)),
            *(f"rewritten prompts: {clean(one, 120)}" for one in sorted(rewriters)),
        ],
        "rai:dataLimitations": _LIMITS,
        "rai:dataUseCases": ["training autoregressive video diffusion models to recover from their own errors"],
        "distribution": [
            {
                "@type": "cr:FileObject", "@id": "repo", "name": "repo", "description": "The repository on the Hub.",
                "contentUrl": url_of(told), "encodingFormat": "git+https",
                "sha256": "https://github.com/mlcommons/croissant/issues/80",  # a repository has none; the files have
            },
            *(
                {
                    "@type": "cr:FileObject", "@id": file.path, "name": file.path, "contentUrl": file.path,
                    "containedIn": {"@id": "repo"}, "encodingFormat": "application/x-parquet",
                    "contentSize": f"{file.bytes} B", "sha256": file.sha256,
                }
                for file in publication.files()
            ),
            *(
                {
                    "@type": "cr:FileSet", "@id": f"files-of-{name}", "name": f"files-of-{name}",
                    "containedIn": {"@id": "repo"}, "encodingFormat": "application/x-parquet",
                    "includes": [path for files in splits.values() for path in files],
                }
                for name, splits in configs(publication).items()
            ),
        ],
        "recordSet": [_record_set(name, publication) for name in configs(publication)],
        "prov:wasDerivedFrom": [
            *({"@id": f"{told.endpoint}/{quote(clean(one, 120))}"} for one in told.base_models),
            *({"@id": _urn(model)} for model in _models_of(corrective_of(publication))),
        ],
        "prov:wasGeneratedBy": [
            {
                "@type": "prov:Activity", "@id": _urn(run.get("run_id")),
                "prov:label": clean(f"{run.get('stage')} {run.get('round') or ''}", 80),
                "prov:wasAssociatedWith": {
                    "@type": "prov:SoftwareAgent", "prov:label": clean(run.get("was_associated_with"), 80),
                    **({"sc:version": clean(run["git_commit"], 40)} if run.get("git_commit") else {}),
                },
            }
            for run in run_facts(publication)
        ],
    }  # fmt: skip
    return {key: value for key, value in found.items() if value not in ([], None)}


def _record_set(name: str, publication: Publication) -> dict[str, Any]:
    rounds = [one for one in publication.rounds.values() if name in (ALL, one.name)]
    what = {ALL: "All rounds.", SEED_ROUND: "Seed clips: real videos."}.get(name, f"Corrective clips of round {name}.")
    models = _models_of(rounds)
    made: dict[str, Any] = {
        "@type": "cr:RecordSet",
        "@id": name,
        "name": name,
        "description": f"{what} {clips_in(file for one in rounds for file in one.files):,} clips.",
        "key": {"@id": f"{name}/clip_id"},
        "field": [_field_of(name, column, kind, doc) for column, (kind, doc) in columns().items()],
    }
    if models:
        made["prov:wasAttributedTo"] = [
            {
                "@type": "prov:SoftwareAgent", "@id": _urn(model),
                "prov:label": f"SyntheticDataGenerator {clean(model, 80)}", "description": f"rolled out {number} clips",
            }
            for model, number in models.items()
        ]  # fmt: skip
    return made


def _field_of(name: str, column: str, kind: pa.DataType, doc: str) -> dict[str, Any]:
    several = pa.types.is_list(kind)
    told = "sc:VideoObject" if column == "video" else _TYPES[kind.value_type if several else kind]
    source: dict[str, Any] = {"fileSet": {"@id": f"files-of-{name}"}, "extract": {"column": column}}
    return {
        "@type": "cr:Field", "@id": f"{name}/{column}", "name": column, "description": doc, "dataType": told,
        "source": source | ({"transform": {"jsonPath": "bytes"}} if column == "video" else {}),
        **({"isArray": True, "arrayShape": "-1"} if several else {}),
        **({"equivalentProperty": _PROV_COLUMNS[column]} if column in _PROV_COLUMNS else {}),
    }  # fmt: skip


_TYPES = {
    pa.string(): "sc:Text", pa.float32(): "cr:Float32", pa.float64(): "cr:Float64", pa.int32(): "cr:Int32",
    pa.int64(): "cr:Int64", pa.bool_(): "sc:Boolean",
}  # fmt: skip


def _models_of(rounds: Iterable[Round]) -> Counter[str]:
    """Model -> clips that it rolled out."""
    found: Counter[str] = Counter()
    for one in rounds:
        found.update({name: number for name, number in counts_of(one.facts, "models").items() if name})
    return found


def _urn(name: object) -> str:
    return f"urn:bagger:{quote(clean(name, 120), safe='')}"


_ABOUT = (
    "Corrective clips for autoregressive video diffusion models, made by Backwards Aggregation (BAgger): a causal "
    "model is rolled out and drifts, and its rollout is played backwards under a rewritten prompt, so that it begins "
    "in the drift and ends in real frames. With drift scores, prompts before and after, and the lineage of every clip."
)
_COLLECTION = (
    "Corrective clips are rollouts of the models named in prov:wasAttributedTo, from the first chunk of a seed clip. "
    "Seed clips, where they are published, are real videos or clips of a procedural world."
)
_MANIPULATION = (
    "A rollout is decoded, its frames are put in reverse order, and it is encoded again. Its prompt is rewritten to be "
    "true of the reversed clip, in words where that is safe and else with the marker 'A reversed video of'. Scores are "
    "taken of the rollout in generation order, before the reversal."
)
_PREPROCESSING = "Source videos are cut, scaled, cropped and resampled to one shape before anything else."
_LIMITS = [
    "Corrective clips are no natural videos: motion, cause and effect run backwards.",
    "Drift is a distance without learned weights, in units of what real clips do; it sees no objects.",
    "Failed gates are recorded and not filtered out of the files.",
]
