"""Records survive array_record, and TFDS keeps quiet while writing them."""

from absl import logging
import tensorflow_datasets as tfds

from diffgr_jax.data import storage
from diffgr_jax.data.records import Document, Query

DOCUMENTS = [Document(f"d{i}", f"title {i}", f"text {i}\n„ünïcode“\x00" * (i % 5 + 1)) for i in range(2500)]
QUERIES = [Query("q", "who", ("a", "b"), (3, 1)), Query("r", "what", ("a",)), Query("s", "why", ("a", "b"), (1, 1))]


class MadeUp(tfds.core.GeneratorBasedBuilder):
  """Documents in one config, queries in the other."""

  VERSION = tfds.core.Version("1.0.0")
  BUILDER_CONFIGS = (tfds.core.BuilderConfig(name="corpus"), tfds.core.BuilderConfig(name="queries"))

  def _info(self):
    corpus = self.builder_config.name == "corpus"
    features = storage.corpus_features() if corpus else storage.query_features()
    return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

  def _split_generators(self, dl_manager):
    if self.builder_config.name == "corpus":
      return {storage.CORPUS_SPLIT: self._generate_examples(DOCUMENTS)}
    return {"test": self._generate_examples(QUERIES)}

  def _generate_examples(self, records):
    for key, record in enumerate(records):
      yield key, storage.record_example(record)


def test_records_come_back_as_they_were(tmp_path, capfd):
  verbosity = logging.get_verbosity()
  corpus, queries = MadeUp(data_dir=tmp_path, config="corpus"), MadeUp(data_dir=tmp_path, config="queries")
  assert storage.prepare(corpus)
  assert storage.prepare(queries)
  assert not storage.prepare(MadeUp(data_dir=tmp_path, config="corpus"))
  assert storage.read_documents(corpus) == tuple(DOCUMENTS)
  assert storage.read_queries(queries, "test") == (*QUERIES[:2], Query("s", "why", ("a", "b")))  # () is all ones
  assert capfd.readouterr() == ("", "")
  assert logging.get_verbosity() == verbosity
