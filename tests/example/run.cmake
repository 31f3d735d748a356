# cmake -DBUILD=... -DSOURCE=... -DWORK=... -P run.cmake: installs the build tree BUILD under WORK,
# builds the example against what was installed, and runs it, at last with the installed server.
function(run expected_status expected_output)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE status OUTPUT_VARIABLE output
                  ERROR_VARIABLE output)
  if(NOT status EQUAL expected_status OR NOT output MATCHES "${expected_output}")
    message(FATAL_ERROR "${ARGN}\nended with ${status}, not ${expected_status}, or did not say "
                        "\"${expected_output}\":\n${output}")
  endif()
endfunction()

file(REMOVE_RECURSE ${WORK})
run(0 "" ${CMAKE_COMMAND} --install ${BUILD} --prefix ${WORK}/prefix)
run(0 "" ${CMAKE_COMMAND} -S ${SOURCE} -B ${WORK}/build -G ${GENERATOR}
    -DCMAKE_PREFIX_PATH=${WORK}/prefix -DCMAKE_BUILD_TYPE=Release
    -DCMAKE_CXX_COMPILER=${COMPILER} -DCMAKE_CXX_FLAGS=${FLAGS})
run(0 "" ${CMAKE_COMMAND} --build ${WORK}/build)
run(2 "usage: gradclip_example ADDRESS" ${WORK}/build/gradclip_example)
run(1 "UNAVAILABLE: server unix:${WORK}/none: can't connect: No such file"
    ${WORK}/build/gradclip_example unix:${WORK}/none)
run(0 "^SERVING\nnorm 13, coefficient 0.5: weight 1.5 0 0 2, bias 6\nshared: 2.5 6\non a GPU: UNIMPLEMENTED\n$"
    ${SOURCE}/serve.sh ${WORK}/prefix ${WORK}/build/gradclip_example)
