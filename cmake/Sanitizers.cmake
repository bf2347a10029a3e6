# ESP_SANITIZE=address,undefined (or thread) builds the library and its native tests under sanitizers.
set(ESP_SANITIZE "" CACHE STRING "Sanitizers, e.g. address,undefined or thread")
set(ESP_OPTIMIZATION -O3)
if(ESP_SANITIZE)
  # Checks make code so large that -O3 takes the compiler longer than it saves the tests.
  set(ESP_OPTIMIZATION -O1)
  add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${ESP_SANITIZE}>
                      $<$<COMPILE_LANGUAGE:CXX>:-fno-sanitize-recover=all> -fno-omit-frame-pointer ${ESP_OPTIMIZATION} -g1)
  add_link_options(-fsanitize=${ESP_SANITIZE})
endif()
