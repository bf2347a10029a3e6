# ESP_SANITIZE=address,undefined (or thread) builds the library and its native tests under sanitizers.
set(ESP_SANITIZE "" CACHE STRING "Sanitizers, e.g. address,undefined or thread")
if(ESP_SANITIZE)
  add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${ESP_SANITIZE}>
                      $<$<COMPILE_LANGUAGE:CXX>:-fno-sanitize-recover=all> -fno-omit-frame-pointer -g)
  add_link_options(-fsanitize=${ESP_SANITIZE})
endif()
