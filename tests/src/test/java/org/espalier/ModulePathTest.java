package org.espalier;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.File;
import java.lang.module.FindException;
import java.lang.module.ModuleDescriptor;
import java.lang.module.ModuleFinder;
import java.lang.module.ModuleReference;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import java.util.TreeSet;
import org.junit.jupiter.api.Test;

/** The jars that the libraries bring may all lie on the module path. */
class ModulePathTest {
  @Test
  void modulesFindWhatTheyRequire() {
    Map<String, ModuleDescriptor> modules = new TreeMap<>();
    for (String place : System.getProperty("java.class.path").split(File.pathSeparator)) {
      for (ModuleReference module : modules(Path.of(place))) {
        modules.put(module.descriptor().name(), module.descriptor());
      }
    }
    assertTrue(modules.containsKey("org.apache.commons.compress"), modules.keySet().toString());
    Set<String> known = new TreeSet<>(modules.keySet());
    ModuleFinder.ofSystem().findAll().forEach(m -> known.add(m.descriptor().name()));
    List<String> missing = new ArrayList<>();
    for (ModuleDescriptor module : modules.values()) {
      for (ModuleDescriptor.Requires required : module.requires()) {
        boolean isNeeded =
            !required.modifiers().contains(ModuleDescriptor.Requires.Modifier.STATIC);
        if (isNeeded && !known.contains(required.name())) {
          missing.add(module.name() + " requires " + required.name());
        }
      }
    }
    assertEquals(List.of(), missing);
  }

  private static Set<ModuleReference> modules(Path place) {
    try {
      return ModuleFinder.of(place).findAll();
    } catch (FindException e) {
      return Set.of(); // a folder of classes, or a jar that has no name as a module
    }
  }
}
