# What `cmake --install` puts where: the four binaries, units, the manual, and what watches them. Units name the prefix
# they are installed under.
include(GNUInstallDirs)

# What a shell completes, for the shells that look there.
if(TARGET nibble)
  install(CODE "
    foreach(file bash-completion/completions/nibble:bash zsh/site-functions/_nibble:zsh
                 fish/vendor_completions.d/nibble.fish:fish)
      string(REPLACE \":\" \";\" file \"\${file}\")
      list(POP_BACK file shell)
      set(path \"\$ENV{DESTDIR}\${CMAKE_INSTALL_PREFIX}/${CMAKE_INSTALL_DATADIR}/\${file}\")
      get_filename_component(folder \"\${path}\" DIRECTORY)
      file(MAKE_DIRECTORY \"\${folder}\")
      message(STATUS \"Installing: \${path}\")
      execute_process(COMMAND \"$<TARGET_FILE:nibble>\" completion \${shell} OUTPUT_FILE \"\${path}\" RESULT_VARIABLE code)
      if(NOT code EQUAL 0)
        message(FATAL_ERROR \"nibble completion \${shell} ended with \${code}\")
      endif()
    endforeach()")
endif()

foreach(binary nibble nibble-server nibble-worker nibble-engine)
  if(TARGET ${binary})
    install(TARGETS ${binary} RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
  endif()
endforeach()

# The manual. README's links are to folders of a checkout; here the pages lie beside it.
install(FILES CHANGELOG.md CONTRIBUTING.md LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})
install(FILES kernels/README.md DESTINATION ${CMAKE_INSTALL_DOCDIR}/kernels)
install(DIRECTORY docs/ DESTINATION ${CMAKE_INSTALL_DOCDIR} FILES_MATCHING PATTERN "*.md" PATTERN "*.svg")
install(CODE "
  file(READ \"${PROJECT_SOURCE_DIR}/README.md\" text)
  string(REPLACE \"](docs/\" \"](\" text \"\${text}\")
  string(REPLACE \"](deploy/monitoring/\" \"](../../nibble/monitoring/\" text \"\${text}\")
  file(WRITE \"\$ENV{DESTDIR}\${CMAKE_INSTALL_PREFIX}/${CMAKE_INSTALL_DOCDIR}/README.md\" \"\${text}\")")
install(DIRECTORY deploy/monitoring/ DESTINATION ${CMAKE_INSTALL_DATADIR}/nibble/monitoring
        PATTERN "*.py" EXCLUDE PATTERN "__pycache__" EXCLUDE PATTERN expect_empty.yaml EXCLUDE
        PATTERN "*.test.yml" EXCLUDE)
install(FILES deploy/systemd/nibble.sysusers DESTINATION lib/sysusers.d RENAME nibble.conf)
install(CODE "
  foreach(unit nibble-server.service nibble-worker.service nibble-worker-gpu.conf)
    file(READ \"${PROJECT_SOURCE_DIR}/deploy/systemd/\${unit}\" text)
    string(REPLACE \"/usr/\" \"\${CMAKE_INSTALL_PREFIX}/\" text \"\${text}\")
    set(folder lib/systemd/system)
    if(unit MATCHES conf)
      set(folder ${CMAKE_INSTALL_DATADIR}/nibble)
    endif()
    message(STATUS \"Installing: \$ENV{DESTDIR}\${CMAKE_INSTALL_PREFIX}/\${folder}/\${unit}\")
    file(WRITE \"\$ENV{DESTDIR}\${CMAKE_INSTALL_PREFIX}/\${folder}/\${unit}\" \"\${text}\")
  endforeach()")
