package org.espalier.cli;

import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.JsonNodeFactory;
import com.fasterxml.jackson.databind.node.ObjectNode;
import org.espalier.store.Lineage;
import org.espalier.store.Version;

/** Versions as JSON. */
final class StoreJson {
  private StoreJson() {}

  static ObjectNode of(Version version) {
    ObjectNode json = JsonNodeFactory.instance.objectNode();
    json.put("id", version.id()).put("created", version.created().toString());
    json.put("signed", version.signed()).put("model", version.model());
    json.put("bytes", version.bytes());
    Lineage lineage = version.lineage();
    json.put("parent", lineage.parent()).put("source", lineage.source());
    json.put("recipe", lineage.recipe());
    if (lineage.data() == null) {
      json.putNull("data");
    } else {
      json.putObject("data")
          .put("source", lineage.data().source())
          .put("from", lineage.data().from())
          .put("to", lineage.data().to());
    }
    ObjectNode metrics = json.putObject("metrics");
    lineage.metrics().forEach(metrics::put);
    json.put("epsilon", lineage.epsilon()).put("note", lineage.note());
    ArrayNode files = json.putArray("files");
    for (Version.StoredFile file : version.files()) {
      files
          .addObject()
          .put("path", file.path())
          .put("bytes", file.bytes())
          .put("sha256", file.sha256());
    }
    return json;
  }
}
